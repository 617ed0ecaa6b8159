"""What a run measures: the log, `metrics.jsonl` and TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from vse_jax.base.buckets import BucketPath, FolderCopy
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, write_atomically


class MetricsLogger:
    """Writes scalars by step; safe to kill at any moment.

    What a training step returns stays on the device until it is written, so that the
    device never waits for the host. `metrics.jsonl` holds one object a line: "step" and
    the scalars; a value that is not finite becomes null, which JSON has a word for.
    TensorBoard reads `tensorboard/`. In a bucket both are copies of local files, half a
    minute late, except for what `flush_to_bucket` waits for.

    Args:
        workdir: folder of the run.
        batch_size: pairs a step.
        first_step: the one before which no weight was updated; None: it is past.
        active: False on all processes but one: nothing is written then.
    """

    def __init__(
        self,
        workdir: AnyPath,
        batch_size: int = 1,
        first_step: int | None = 1,
        active: bool = True,
    ):
        self._workdir = workdir
        self._batch_size = batch_size
        self._first_step = first_step
        self._active = active
        self._copy: FolderCopy | None = None
        self._folder = workdir
        if active and isinstance(workdir, BucketPath):
            self._copy = FolderCopy(workdir)
            self._folder = self._copy.folder
        self._path = self._folder / "metrics.jsonl"
        self._purge_step = 0
        self._make_tensorboard = _summary_writer() if active else None
        self._tensorboard: Any = None
        self._pending: list[tuple[int, dict]] = []
        self._due = False
        self._compiled = False
        self.restart_clock()

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
        self._purge_step = step + 1
        if not (self._workdir / self._path.name).exists():
            return

        def is_validation(row: dict) -> bool:
            return any(name.startswith("eval/") for name in row)

        kept = [
            row
            for row in read_metrics(self._workdir)
            if row["step"] < step
            or (row["step"] == step and (validated or not is_validation(row)))
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
            assert isinstance(self._path, Path)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror}") from error
        if self._tensorboard is None and self._make_tensorboard is not None:
            self._tensorboard = self._make_tensorboard(
                str(self._folder / "tensorboard"), purge_step=self._purge_step
            )
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._copy is not None:
            self._copy.soon()

    # ---- Of training steps -----------------------------------------------------------

    def restart_clock(self) -> None:
        """Leaves what happened since the last line out of the rates."""
        self._start = time.monotonic()
        self._waited = 0.0  # seconds
        self._timed = 0  # steps

    def timed_next(self, batches):
        """The next batch; the time it takes is the step's wait for data."""
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
        """Keeps what a step returned: loss, grad_norm, lr."""
        if self._pending:
            # At most two steps in flight: queued batches would fill the memory.
            jax.block_until_ready(self._pending[-1][1]["loss"])
        if self._due:
            self.flush()
        self._pending.append((step, scalars))
        if self._compiled:
            self._timed += 1
        else:
            self._compiled = True
            scalars["loss"].block_until_ready()
            seconds = time.monotonic() - self._start
            logging.info("first step took %.1f s, compilation included", seconds)
            self.write(step, {"perf/first_step_s": seconds})
            self.restart_clock()

    def flush_soon(self) -> None:
        """Writes what is kept at the next step: by then its numbers are there.

        Waiting for them now would leave the device without work.
        """
        self._due = True

    def flush(self) -> None:
        """Writes the means since the last line, if there was a step.

        Rates are those of the steps since `restart_clock`; the first one has none.

        Raises:
            InputError: a loss or gradient norm is NaN or infinite; names the first such
                step.
        """
        self._due = False
        if not self._pending:
            return
        steps, scalars = zip(*self._pending, strict=True)
        rows = jax.device_get(scalars)
        for step, row in zip(steps, rows, strict=True):
            for name in ("loss", "grad_norm"):
                if math.isfinite(row[name]):
                    continue
                found = f"train/{name} is {row[name]} at step {step}; stopped"
                if step == self._first_step:
                    raise InputError(
                        f"{found}: no weight was updated before, so the weights that "
                        "it began with or the data are at fault"
                    )
                raise InputError(
                    f"{found}, what was saved before is kept (lower "
                    "config.optimizer.learning_rate?)"
                )
        seconds = time.monotonic() - self._start
        line = {
            "train/loss": float(np.mean([row["loss"] for row in rows])),
            "train/grad_norm": float(np.mean([row["grad_norm"] for row in rows])),
            "train/lr": float(rows[-1]["lr"]),
        }
        if self._timed:
            line["perf/images_per_s"] = self._timed * self._batch_size / seconds
            line["perf/data_wait"] = self._waited / seconds
        self.write(steps[-1], line)
        self._pending = []
        self.restart_clock()

    def write_validation(self, step: int, split: str, metrics: dict) -> None:
        """Writes eval/<split>/rsum, and i2t_… and t2i_… of r1, r5, r10, medr, meanr."""
        scalars = {f"eval/{split}/rsum": metrics["rsum"]}
        for direction in ("i2t", "t2i"):
            for name, value in metrics[direction].items():
                scalars[f"eval/{split}/{direction}_{name}"] = value
        self.write(step, scalars)

    def flush_to_bucket(self) -> None:
        """Returns when everything written is there, if the run's folder is in a bucket.

        Raises:
            OSError: it cannot be written (names the object).
        """
        if self._copy is not None:
            if self._tensorboard is not None:
                self._tensorboard.flush()
            self._copy.now()

    def close(self) -> None:
        """Waits until everything written is on disk, or in the bucket."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._copy is not None:
            self._copy.close()


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


def read_metrics(workdir: AnyPath) -> list[dict]:
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


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"
