"""What a run says first: what computes, what is trained, on what."""

import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vse_jax import __version__
from vse_jax.base.files import write_atomically
from vse_jax.base.trees import flatten
from vse_jax.distributed.runtime import matmul_precision, memory_of
from vse_jax.training.plan import Plan
from vse_jax.training.start import Splits


def run_facts(plan: Plan, splits: Splits, workdir: Path) -> dict[str, Any]:
    """The contents of run.json."""
    config = plan.config
    sizes = {
        split.name: {"images": len(split.image_ids), "captions": len(split.captions)}
        for split in splits
    }
    return {
        "versions": {
            "vse_jax": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
        "devices": _devices(),
        "processes": jax.process_count(),
        "mesh": dict(plan.mesh.shape),
        "precision": {
            "compute_dtype": config.compute_dtype,
            "matmul_precision": matmul_precision(config, jax.default_backend()),
        },
        "parameters": _parameters(plan),
        "data": {"root": str(splits.train.root), **sizes},
        "steps": plan.steps,
        "steps_per_epoch": plan.schedule.steps_per_epoch,
        "results": str(workdir),
    }


def _devices() -> dict[str, Any]:
    """Kind and number of the devices; bytes of one's memory, for a CPU the host's."""
    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "memory_bytes": memory_of(device),
    }


def _parameters(plan: Plan) -> dict[str, dict[str, int]]:
    """How many are trained, sooner or later, and how many never, by tower."""
    trained = plan.optimizer.trained_paths()
    counts = {tower: {"trained": 0, "frozen": 0} for tower in plan.abstract.params}
    for path, leaf in flatten(plan.abstract.params).items():
        kind = "trained" if path in trained else "frozen"
        counts[path.partition("/")[0]][kind] += math.prod(leaf.shape)
    return counts


def report(facts: dict[str, Any], workdir: Path) -> None:
    """Logs the facts in a few lines and writes run.json."""
    devices, versions = facts["devices"], facts["versions"]
    mesh = " × ".join(f"{axis} {n}" for axis, n in facts["mesh"].items())
    logging.info(
        "vse_jax %s on JAX %s: %d × %s (%s, %.0f GB), processes: %d, mesh: %s",
        *(versions["vse_jax"], versions["jax"], devices["count"], devices["kind"]),
        *(devices["platform"], devices["memory_bytes"] / 1e9),
        *(facts["processes"], mesh),
    )
    if devices["platform"] == "cpu" and _has_gpu():
        logging.warning(
            "a GPU is here, but this JAX computes on the CPU: install the wheel for it"
        )
    logging.info(
        "precision: %s towers, matrix products '%s'", *facts["precision"].values()
    )
    for tower, count in facts["parameters"].items():
        logging.info(
            "%s tower: %s parameters are trained, %s frozen",
            *(tower, f"{count['trained']:,}", f"{count['frozen']:,}"),
        )
    splits = [
        f"{name} {split['images']:,} pictures / {split['captions']:,} captions"
        for name, split in facts["data"].items()
        if name != "root"
    ]
    logging.info("data %s: %s", facts["data"]["root"], ", ".join(splits))
    logging.info(
        "%d steps, %d an epoch; results go to %s",
        *(facts["steps"], facts["steps_per_epoch"], workdir),
    )
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(workdir / "run.json", text.encode())


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
