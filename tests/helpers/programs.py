"""Runs the project's programs as a user does, in processes of their own."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vse_jax.metrics_logger import read_metrics

MAIN = [sys.executable, "main.py"]
CONVERT = [sys.executable, "convert_torch_weights.py"]


def start(args, environment, program=MAIN):
    """Starts a program; its output is kept."""
    return subprocess.Popen(
        [*program, *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(args, environment, code=0, program=MAIN):
    """(stdout, stderr) of a program that has to end with `code`."""
    process = start(args, environment, program)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def one_line_error(args, environment, program=MAIN):
    """Runs something that must fail as bad input does; returns the line."""
    _, err = run(args, environment, code=1, program=program)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert lines[0] == err.strip().splitlines()[-1], err
    assert "Traceback" not in err
    return lines[0]


def wait_for(condition, process, seconds=120):
    """True as soon as `condition()` holds; False when the process ends first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parameters(workdir: Path, which: str = "newest") -> dict[str, np.ndarray]:
    """Every array of a model's checkpoint, read without the project's code."""
    import jax
    import orbax.checkpoint as ocp

    found = (p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    step = max(found, key=lambda path: int(path.name))
    if which == "best":
        progress = json.loads((step / "data" / "metadata").read_text())
        step = step.with_name(str(progress["best_step"]))
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(step.absolute() / "model").item_metadata.tree
        # As NumPy arrays: the devices that wrote it may be another process's.
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        tree = checkpointer.restore(step.absolute() / "model", target)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the machine's speed."""
    found = (
        {k: v for k, v in row.items() if not k.startswith("perf/")}
        for row in read_metrics(workdir)
    )
    return [row for row in found if row.keys() > {"step"}]


def assert_same_run(workdir: Path, other: Path) -> None:
    """Both ended with the same parameters, bit by bit, and the same metrics."""
    assert rows(workdir) == rows(other)
    expected, found = parameters(other), parameters(workdir)
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
