"""Scalars of a run: the log, `metrics.jsonl` and TensorBoard."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically


class MetricWriter:
    """Writes scalars by step; safe to kill at any moment.

    `metrics.jsonl` holds one object a line: "step" and the scalars; a value that is not
    finite becomes null, which JSON has a word for. TensorBoard reads `tensorboard/`.

    Args:
        workdir: folder of the run.
        active: False on all processes but one: nothing is written then.
    """

    def __init__(self, workdir: Path, active: bool = True):
        self._workdir = workdir
        self._active = active
        self._path = workdir / "metrics.jsonl"
        self._first_step = 0
        self._make_tensorboard = _summary_writer() if active else None
        self._tensorboard: Any = None

    def truncate_after(self, step: int, validated: bool = True) -> None:
        """Forgets what was written after `step`; call it before the first `write`.

        A resumed run repeats the steps since its checkpoint, and no step may be there
        twice. TensorBoard is told to hide the events it already has. Unless the
        checkpoint was `validated`, the validation at `step` is repeated too.

        Raises:
            InputError: `metrics.jsonl` is damaged, or the disk is full.
        """
        if not self._active:
            return
        self._first_step = step + 1
        if not self._path.exists():
            return
        kept = [
            row
            for row in read_metrics(self._workdir)
            if row["step"] < step
            or (row["step"] == step and (validated or not _is_validation(row)))
        ]
        try:
            write_atomically(self._path, "".join(map(_line, kept)).encode())
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror}") from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of a step.

        Raises:
            InputError: the disk is full.
        """
        if not self._active:
            return
        row = {"step": step} | {
            name: float(value) if math.isfinite(value) else None
            for name, value in scalars.items()
        }
        shown = ", ".join(f"{name} {value:.5g}" for name, value in scalars.items())
        logging.info("step %d: %s", step, shown)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror}") from error
        if self._tensorboard is None and self._make_tensorboard is not None:
            self._tensorboard = self._make_tensorboard(
                str(self._workdir / "tensorboard"), purge_step=self._first_step
            )
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Waits until TensorBoard's events are on disk too."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def _summary_writer() -> Callable[..., Any]:
    """tensorboardX's class.

    It imports PyTorch where it finds it: a second and 200 MB for nothing that is used
    here. An entry of None lets it find none.
    """
    torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415
    finally:
        if torch is None:
            del sys.modules["torch"]
    return SummaryWriter


def read_metrics(workdir: Path) -> list[dict]:
    """The rows of `metrics.jsonl`: {"step": int, name: number or None}, oldest first.

    A last line that a killed process left unfinished is not read.

    Raises:
        InputError: no such file, or a line that is damaged (named).
    """
    path = workdir / "metrics.jsonl"
    try:
        *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{path}, line {number}: not an object with a step"
            ) from None
        rows.append(row)
    return rows


def _is_validation(row: dict) -> bool:
    return any(name.startswith("eval/") for name in row)


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"
