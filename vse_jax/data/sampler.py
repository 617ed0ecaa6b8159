"""Which captions make up each training batch: a pure function of (seed, epoch)."""

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

_computing = threading.Lock()


class Position(NamedTuple):
    """Where a training step stands."""

    epoch: int
    step_in_epoch: int
    pass_index: int  # of the epoch
    batch_index: int  # of the pass


@dataclass(frozen=True)
class Sampler:
    """The captions of every training batch.

    With `distinct_images` an epoch is captions_per_image passes over the images, each
    in a new order and with another caption of every image, so that no batch holds an
    image twice; without it, one pass over all captions. Either way a caption appears
    at most once an epoch, and a pass's partial last batch is dropped.

    first_step, first_epoch: steps and epochs that a run had made with other data.
    """

    seed: int
    images: int
    captions_per_image: int
    batch_size: int
    distinct_images: bool
    first_step: int = 0
    first_epoch: int = 0

    @property
    def passes(self) -> int:
        return self.captions_per_image if self.distinct_images else 1

    @property
    def steps_per_pass(self) -> int:
        captions = self.images * self.captions_per_image
        return captions // self.passes // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.passes * self.steps_per_pass

    def position(self, step: int) -> Position:
        """The position of training step `step`, counted from 0 over the whole run."""
        epochs, step_in_epoch = divmod(step - self.first_step, self.steps_per_epoch)
        pass_index, batch_index = divmod(step_in_epoch, self.steps_per_pass)
        epoch = self.first_epoch + epochs
        return Position(epoch, step_in_epoch, pass_index, batch_index)

    def batch(self, position: Position) -> Int[np.ndarray, " batch"]:
        """Numbers of the captions of the global batch at `position`."""
        epoch = _epoch_batches(self, position.epoch)
        return epoch[position.pass_index, position.batch_index]

    def replacements(self, position: Position, column: int) -> Iterator[int]:
        """The caption of `column`, then those that may replace a bad image's.

        They come from the same column of the pass's other batches: no other row of this
        batch ever takes them, so a batch of distinct images stays one.
        """
        batches = _epoch_batches(self, position.epoch)[position.pass_index]
        for shift in range(len(batches)):
            row = (position.batch_index + shift) % len(batches)
            yield int(batches[row, column])

    def generator(self, position: Position, column: int) -> np.random.Generator:
        """Random numbers for the augmentation of one row of a batch."""
        # NumPy pads seeds with zeros: the 1 keeps row 0's apart from [seed, epoch].
        seed = [self.seed, position.epoch, position.step_in_epoch, column + 1]
        return np.random.default_rng(seed)


def _epoch_batches(
    sampler: Sampler, epoch: int
) -> Int[np.ndarray, "passes steps_per_pass batch"]:
    with _computing:  # all threads ask for a new epoch at the same moment
        return _compute_epoch_batches(sampler, epoch)


@functools.lru_cache(maxsize=2)  # workers on both sides of an epoch's end
def _compute_epoch_batches(sampler: Sampler, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([sampler.seed, epoch])
    images, per_image = sampler.images, sampler.captions_per_image
    if sampler.distinct_images:
        turns = rng.permuted(np.tile(np.arange(per_image), (images, 1)), axis=1)
        passes = [rng.permutation(images) for _ in range(sampler.passes)]
        captions = np.stack(
            [image * per_image + turns[image, i] for i, image in enumerate(passes)]
        )
    else:
        captions = rng.permutation(images * per_image)[None]
    kept = sampler.steps_per_pass * sampler.batch_size
    return captions[:, :kept].reshape(sampler.passes, -1, sampler.batch_size)
