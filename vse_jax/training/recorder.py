"""What the training loop measures: losses, rates, waiting; a line every few steps."""

import math
import time

import jax
import numpy as np
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.training.metric_writer import MetricWriter


class Recorder:
    """Collects the steps' scalars on the device until they are written.

    Args:
        writer: of `metrics.jsonl`.
        batch_size: pairs a step.
        first_step: the one before which no weight was updated; None: it is past.
    """

    def __init__(
        self, writer: MetricWriter, batch_size: int, first_step: int | None = 1
    ):
        self._first_step = first_step
        self._writer = writer
        self._batch_size = batch_size
        self._pending: list[tuple[int, dict]] = []
        self._due = False
        self._compiled = False
        self.restart_clock()

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
            self._writer.write(step, {"perf/first_step_s": seconds})
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
        numbers, scalars = zip(*self._pending, strict=True)
        rows = jax.device_get(scalars)
        self._check_finite(numbers, rows)
        seconds = time.monotonic() - self._start
        line = {
            "train/loss": float(np.mean([row["loss"] for row in rows])),
            "train/grad_norm": float(np.mean([row["grad_norm"] for row in rows])),
            "train/lr": float(rows[-1]["lr"]),
        }
        if self._timed:
            line["perf/images_per_s"] = self._timed * self._batch_size / seconds
            line["perf/data_wait"] = self._waited / seconds
        self._writer.write(numbers[-1], line)
        self._pending = []
        self.restart_clock()

    def _check_finite(self, steps, rows) -> None:
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

    def write_validation(self, step: int, split: str, metrics: dict) -> None:
        """Writes eval/<split>/rsum, and i2t_… and t2i_… of r1, r5, r10, medr, meanr."""
        scalars = {f"eval/{split}/rsum": metrics["rsum"]}
        for direction in ("i2t", "t2i"):
            for name, value in metrics[direction].items():
                scalars[f"eval/{split}/{direction}_{name}"] = value
        self._writer.write(step, scalars)

    def write_rescored(self, step: int, split: str, rsum: float) -> None:
        """Writes eval/<split>/best_rsum: the earlier best model's on new data."""
        self._writer.write(step, {f"eval/{split}/best_rsum": rsum})

    def close(self) -> None:
        """Waits until everything written is on disk."""
        self._writer.close()
