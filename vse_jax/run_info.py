"""What a run says first, in the log and in run.json: devices, parameters, data."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from vse_jax.base.files import AnyPath, write_atomically
from vse_jax.base.trees import flatten
from vse_jax.config import Config
from vse_jax.data.dataset import Split
from vse_jax.distributed.runtime import matmul_precision, memory_of, versions


def write_run_info(
    config: Config,
    mesh: Mesh,
    params,
    trainable: Iterable[str],
    splits: Sequence[Split],
    steps: tuple[int, int],
    workdir: AnyPath,
) -> None:
    """Logs in a few lines what is trained, on what and by what; writes run.json.

    Args:
        config: of the run.
        mesh: of the run.
        params: the model's, or their shapes.
        trainable: paths of the parameters that are trained, sooner or later.
        splits: to train on, to validate on and to test on.
        steps: of the run and of an epoch.
        workdir: folder of the run.
    """
    # Of encoders, loss and adapters; a device's memory is, for a CPU, the host's.
    paths = frozenset(trainable)
    counts = {part: {"trained": 0, "frozen": 0} for part in params}
    for path, leaf in flatten(params).items():
        kind = "trained" if path in paths else "frozen"
        counts[path.partition("/")[0]][kind] += math.prod(leaf.shape)
    device = jax.local_devices()[0]
    known = versions()
    precision = matmul_precision(config, jax.default_backend())
    sizes = {
        split.name: {"images": len(split.image_ids), "captions": len(split.captions)}
        for split in splits
    }
    info = {
        "versions": known,
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "memory_bytes": memory_of(device),
        },
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "precision": {
            "compute_dtype": config.compute_dtype,
            "matmul_precision": precision,
        },
        "parameters": counts,
        "data": {"root": str(splits[0].root), **sizes},
        "steps": steps[0],
        "steps_per_epoch": steps[1],
        "results": str(workdir),
    }

    logging.info(
        "vse_jax %s on JAX %s: %d × %s (%s, %.0f GB), processes: %d, mesh: %s",
        known["vse_jax"],
        known["jax"],
        jax.device_count(),
        device.device_kind,
        device.platform,
        memory_of(device) / 1e9,
        jax.process_count(),
        " × ".join(f"{axis} {n}" for axis, n in mesh.shape.items()),
    )
    if device.platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        logging.warning(
            "a GPU is here, but this JAX computes on the CPU: install the wheel for it"
        )
    logging.info(
        "precision: %s encoders, matrix products '%s'", config.compute_dtype, precision
    )
    for part, count in counts.items():
        name = f"{part} encoder" if part in ("image", "text") else part
        trained, frozen = f"{count['trained']:,}", f"{count['frozen']:,}"
        logging.info("%s: %s parameters are trained, %s frozen", name, trained, frozen)
    described = [
        f"{name} {size['images']:,} images / {size['captions']:,} captions"
        for name, size in sizes.items()
    ]
    logging.info("data %s: %s", splits[0].root, ", ".join(described))
    logging.info("%d steps, %d an epoch; results go to %s", *steps, workdir)
    text = json.dumps(info, indent=1) + "\n"
    write_atomically(workdir / "run.json", text.encode())
