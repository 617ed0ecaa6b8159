"""What a run says first: what computes, what is trained, on what."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from vse_jax.base.files import write_atomically
from vse_jax.base.trees import flatten
from vse_jax.training.loop import Run
from vse_jax.training.start import Splits
from vse_jax.training.state import TrainState


def run_facts(
    run: Run, state: TrainState, splits: Splits, mesh: Mesh
) -> dict[str, Any]:
    """The contents of run.json."""
    config = run.config
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
        "devices": _devices(),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "precision": {
            "compute_dtype": config.compute_dtype,
            "matmul_precision": config.matmul_precision,
        },
        "parameters": _parameters(run, state),
        "data": {
            "root": str(splits.train.root),
            **{
                split.name: {
                    "images": len(split.image_ids),
                    "captions": len(split.captions),
                }
                for split in splits
            },
            "steps_per_epoch": run.schedule.steps_per_epoch,
            "steps": run.total,
        },
    }


def _devices() -> dict[str, Any]:
    """Kind and number of the devices; bytes of one's memory, for a CPU the host's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit")
    if memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "memory_bytes": memory,
    }


def _parameters(run: Run, state: TrainState) -> dict[str, dict[str, int]]:
    """How many are trained, sooner or later, and how many never, by tower."""
    trained = run.optimizer.trained_paths()
    counts = {tower: {"trained": 0, "frozen": 0} for tower in state.params}
    for path, leaf in flatten(state.params).items():
        kind = "trained" if path in trained else "frozen"
        counts[path.partition("/")[0]][kind] += int(np.prod(leaf.shape))
    return counts


def report(facts: dict[str, Any], workdir: Path) -> None:
    """Logs the facts in a few lines and writes run.json."""
    devices, data = facts["devices"], facts["data"]
    mesh = " × ".join(f"{axis} {n}" for axis, n in facts["mesh"].items())
    logging.info(
        "vse_jax on JAX %s: %d × %s (%s, %.0f GB), %d process(es), mesh %s",
        *(facts["versions"]["jax"], devices["count"], devices["kind"]),
        *(devices["platform"], devices["memory_bytes"] / 1e9),
        *(facts["processes"], mesh),
    )
    if devices["platform"] == "cpu" and _has_gpu():
        logging.warning(
            "a GPU is here, but this JAX computes on the CPU: install the wheel for it"
        )
    logging.info(
        "precision: %s towers, matrix products '%s'",
        *facts["precision"].values(),
    )
    for tower, count in facts["parameters"].items():
        logging.info(
            "%s tower: %.1f M parameters trained, %.1f M frozen",
            *(tower, count["trained"] / 1e6, count["frozen"] / 1e6),
        )
    splits = [
        f"{name} {split['images']:,} pictures / {split['captions']:,} captions"
        for name, split in data.items()
        if isinstance(split, dict)
    ]
    logging.info("data %s: %s", data["root"], ", ".join(splits))
    logging.info(
        "%d steps, %d an epoch; results go to %s",
        *(data["steps"], data["steps_per_epoch"], workdir),
    )
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(workdir / "run.json", text.encode())


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
