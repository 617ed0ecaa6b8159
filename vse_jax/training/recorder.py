"""What the training loop measures: losses, rates, waiting; a line every few steps."""

import math
import time

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.training.metric_writer import MetricWriter


class Recorder:
    """Collects the steps' scalars on the device; writes one line every `log_every`.

    `unwritten` is what a run that stopped between two lines had collected.
    """

    def __init__(self, config: ConfigDict, writer: MetricWriter, unwritten: list):
        self._config = config
        self._writer = writer
        self._pending: list[tuple[int, dict]] = [(step, row) for step, row in unwritten]
        self._compiled = False
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what happened since the last line out of the rates."""
        self._start = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    def timed_next(self, batches):
        """The next batch; the time it takes is the step's wait for data."""
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
        if self._pending:
            # At most two steps in flight: queued batches would fill the memory.
            jax.block_until_ready(self._pending[-1][1]["loss"])
        self._pending.append((step, scalars))
        self._steps += 1
        if not self._compiled:
            self._compiled = True
            scalars["loss"].block_until_ready()
            seconds = time.monotonic() - self._start
            logging.info("first step took %.1f s, compilation included", seconds)
            self._writer.write(step, {"perf/first_step_s": seconds})
        if step % self._config.log_every == 0:
            self.flush(step)

    def unwritten(self) -> list:
        """JSON-able [(step, scalars)] since the last line.

        Raises:
            InputError: a loss is NaN or infinite; names the first such step.
        """
        numbers = [number for number, _ in self._pending]
        fetched = jax.device_get([scalars for _, scalars in self._pending])
        for number, row in zip(numbers, fetched, strict=True):
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    raise InputError(
                        f"train/{name} is {row[name]} at step {number}; stopped, the "
                        "last good checkpoint is kept (lower "
                        "config.optimizer.learning_rate?)"
                    )
        return [
            (number, {name: float(value) for name, value in row.items()})
            for number, row in zip(numbers, fetched, strict=True)
        ]

    def flush(self, step: int) -> None:
        """Writes the means since the last line.

        Raises:
            InputError: as `unwritten`.
        """
        if not self._pending:
            return
        rows = [row for _, row in self.unwritten()]
        seconds = time.monotonic() - self._start
        self._writer.write(
            step,
            {
                "train/loss": float(np.mean([row["loss"] for row in rows])),
                "train/grad_norm": float(np.mean([row["grad_norm"] for row in rows])),
                "train/lr": float(rows[-1]["lr"]),
                "perf/images_per_s": self._steps * self._config.batch_size / seconds,
                "perf/data_wait": self._waited / seconds,
            },
        )
        self._pending = []
        self.restart_clock()
