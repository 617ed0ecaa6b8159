"""All that an NVIDIA GPU is asked for, in one go; each figure is kept as it comes.

    python -m benchmarks.gpu [--output=FILE]

Training steps beside PyTorch's, GPO's sorting and WSL's grouped convolutions in several
ways, decoding, and the tests of `make test-gpu`. Ends after ten minutes; the same
command goes on with what FILE lacks. Written for 141 GB of memory, and not run yet.
"""

import contextlib
import functools
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks import data_loading, inputs, our_rows, pytorch_rows, sorted_pool
from benchmarks.report import FOLDER, machine, write_results
from benchmarks.rows import repeated
from vse_jax.base.errors import InputError
from vse_jax.command_line import errors_on_one_line
from vse_jax.config import Config, with_fields
from vse_jax.data.images import own_process
from vse_jax.ops.conv import conv2d_reference, merged_groups

_OUTPUT = flags.DEFINE_string("output", str(FOLDER / "gpu.json"), "File of results.")

SECONDS = 600  # of a whole call
ROUNDS = 5
DTYPES = ("bfloat16", "float32")  # products of the latter are TF32
# Side, channels of the 3 × 3 convolutions in WSL's first three stages, at 512 px. In
# the fourth, a group's 64 channels are merged nowhere.
STAGES = ((128, 256), (64, 512), (32, 1024))
IMAGES, GROUPS = 32, 32
CONVOLUTIONS = {"feature_group_count": conv2d_reference, "merged": merged_groups}

Figures = Iterator[tuple[str, Any]]

# ---- Jobs: each yields (what was measured, its figure) -------------------------------


def our_steps(config: Config) -> Figures:
    """Training steps on a batch that is on the GPU, until the loss is on the host."""
    our_rows.prepare()
    for dtype in DTYPES:
        changed = with_fields(config, {"compute_dtype": dtype})
        step = our_rows.training_step(changed, inputs.training_batch(changed))
        yield dtype, timed(step)
    (device, *_) = jax.local_devices()
    yield "peak bytes of both", (device.memory_stats() or {}).get("peak_bytes_in_use")


def pytorch_steps(config: Config) -> Figures:
    """The same of the peer, through torch.compile; bfloat16 by autocast."""
    for dtype in DTYPES:
        pytorch_rows.prepare()
        changed = with_fields(config, {"compute_dtype": dtype})
        batch = inputs.training_batch(changed)
        yield dtype, timed(pytorch_rows.compiled_training_step(changed, batch))
    yield "peak bytes of both", pytorch_rows.peak_bytes()


def sorting(shapes: tuple[tuple[int, int, int], ...]) -> Figures:
    """Of benchmarks.sorted_pool: GPO's sum over ranks, with its gradient."""
    for shape in shapes:
        yield " × ".join(map(str, shape)), sorted_pool.times(shape)


def grouped_convolutions(stages: tuple[tuple[int, int], ...], images: int) -> Figures:
    """Plain, and merged as on TPUs and CPUs, forward and backward."""
    our_rows.prepare()  # TF32

    def both_directions(way, x, kernel):
        y, gradients = jax.vjp(functools.partial(way, groups=GROUPS), x, kernel)
        return gradients(y)

    rng = np.random.default_rng(0)
    for side, channels in stages:
        image = rng.standard_normal((images, side, side, channels), np.float32)
        kernel = rng.standard_normal((3, 3, channels // GROUPS, channels), np.float32)
        for dtype in DTYPES:
            arrays = [jax.numpy.asarray(array, dtype) for array in (image, kernel)]
            for name, way in CONVOLUTIONS.items():
                run = jax.jit(functools.partial(both_directions, way))
                seconds = timed(functools.partial(run, *arrays))
                yield f"{side}² × {channels}, {dtype}, {name}", seconds


def decoding(config: Config, photographs: int, workers: list[int]) -> Figures:
    """Of benchmarks.data_loading: images a second by the number of threads."""
    own_process()
    config = inputs.with_photographs(config, photographs)
    yield from data_loading.rates(config, ("threads",), workers)


def tests(marks: str) -> Figures:
    """The outcome of each test that has one of the marks, with this Python."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", marks]
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda,cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"(\S+::.*?) ([A-Z]{4,})\b", line):
                yield found[1], found[2]
    yield "exit code", process.returncode


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of a call in each round, after one that compiles it and warms it up."""
    turn = repeated(lambda: jax.block_until_ready(call()))
    return [turn() for _ in range(1 + ROUNDS)][1:]


class Job(NamedTuple):
    """A function that yields figures, its arguments, and its seconds at most."""

    run: Callable[..., Figures]
    arguments: tuple[Any, ...]
    seconds: int


_REGION, _GRID = inputs.region_config(), inputs.grid_config(512, 128)
_PHOTOGRAPHS = inputs.grid_config(data_loading.SIZE, data_loading.BATCH)
JOBS = {
    "GPO's sorting": Job(sorting, (sorted_pool.SHAPES,), 90),
    "WSL's grouped convolutions": Job(grouped_convolutions, (STAGES, IMAGES), 120),
    "coco_region's step": Job(our_steps, (_REGION,), 120),
    "coco_region's step, PyTorch": Job(pytorch_steps, (_REGION,), 180),
    "coco_grid's step": Job(our_steps, (_GRID,), 240),
    "coco_grid's step, PyTorch": Job(pytorch_steps, (_GRID,), 300),
    "decoding": Job(decoding, (_PHOTOGRAPHS, 64, [1, 2, 4, 8, 16]), 120),
    "make test-gpu": Job(tests, ("golden or gpu",), 600),
}

# ---- The whole -----------------------------------------------------------------------


def measure(jobs: dict[str, Job], path: Path, seconds: float = SECONDS) -> None:
    """Runs what `path` does not say is done, each job in a process of its own.

    A job that fails or takes too long keeps its figures; its "end" says what happened.
    """
    until = time.monotonic() + seconds
    for name, job in jobs.items():
        if _read(path)["jobs"].get(name, {}).get("end") == "done":
            continue
        left = min(job.seconds, until - time.monotonic())
        if left <= 0:
            print(f"no time is left for {name}: run it again")
            return
        # Neither side's memory stays on the GPU for the next one.
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(name, job, path)
        )
        process.start()
        try:
            process.join(left)
        finally:
            late = process.exitcode is None
            if late:  # with the programs that it has started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.kill()
        process.join()
        if process.exitcode:
            why = f"exit code {process.exitcode}, see its output"
            _note(path, name, "end", f"killed after {left:.0f} s" if late else why)


def _work(name: str, job: Job, path: Path) -> None:
    os.setpgrp()
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.95"  # it has the GPU to itself
    for figure, value in job.run(*job.arguments):
        print(f"{name}: {figure}: {value}", flush=True)
        _note(path, name, figure, value)
    _note(path, name, "end", "done")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"jobs": {}}


def _note(path: Path, job: str, figure: str, value: Any) -> None:
    results = _read(path)
    results["jobs"].setdefault(job, {})[figure] = value
    write_results(path, results)


def main(_) -> None:
    if shutil.which("nvidia-smi") is None:
        raise InputError("no nvidia-smi, so no NVIDIA GPU, is here")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    path = Path(_OUTPUT.value)
    versions = {p: importlib.metadata.version(p) for p in ("jax", "torch")}
    about = {"gpu": gpu.strip(), "machine": machine(), "versions": versions}
    write_results(path, _read(path) | about)
    measure(JOBS, path)


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
