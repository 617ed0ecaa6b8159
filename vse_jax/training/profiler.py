"""A trace of some training steps, for TensorBoard or Perfetto."""

from pathlib import Path

import jax
from absl import logging


class Profiler:
    """Traces the steps that config.profile names, 'FIRST:LAST', into a folder.

    Args:
        steps: the field, or None.
        folder: where jax.profiler writes; read it with TensorBoard's profile plugin.
    """

    def __init__(self, steps: str | None, folder: Path):
        first, last = map(int, steps.split(":")) if steps else (0, 0)
        self._steps = range(first, last + 1) if steps else range(0)
        self._folder = folder
        self._active = False

    def before(self, step: int) -> None:
        """Call it before everything that belongs to `step`, counted from 1."""
        if step in self._steps and not self._active:
            jax.profiler.start_trace(str(self._folder))
            self._active = True

    def after(self, step: int, results) -> None:
        """Call it with the arrays that the step returned."""
        if self._active and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is going on."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
            logging.info("profile: %s", self._folder)
