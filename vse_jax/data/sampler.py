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


@dataclass(eq=False)
class Epochs:
    """How training steps make up passes and epochs.

    An epoch's captions are spread evenly over its passes; a pass's partial last batch
    is dropped.

    first_step, first_epoch: steps and epochs that a run had made with other data.
    """

    captions: int
    passes: int
    batch_size: int
    first_step: int = 0
    first_epoch: int = 0

    @property
    def steps_per_pass(self) -> int:
        return self.captions // self.passes // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.passes * self.steps_per_pass

    def position(self, step: int) -> Position:
        """The position of training step `step`, counted from 0 over the whole run."""
        epochs, step_in_epoch = divmod(step - self.first_step, self.steps_per_epoch)
        pass_index, batch_index = divmod(step_in_epoch, self.steps_per_pass)
        epoch = self.first_epoch + epochs
        return Position(epoch, step_in_epoch, pass_index, batch_index)


class Sampler(Epochs):
    """The captions of every training batch.

    Without `distinct_images` an epoch is one pass over all captions. With it, an epoch
    is as many passes over the images as an image has captions at most, each in a new
    order and with other captions, so that no batch holds an image twice. Either way a
    caption appears at most once an epoch.
    """

    def __init__(
        self,
        seed: int,
        offsets: Int[np.ndarray, " bounds"],
        batch_size: int,
        distinct_images: bool,
        first_step: int = 0,
        first_epoch: int = 0,
    ):
        """`offsets`: the captions offsets[i]:offsets[i + 1] are those of image i."""
        self.seed, self.offsets = seed, offsets
        most = int(np.diff(offsets).max())
        super().__init__(
            captions=int(offsets[-1]),
            passes=most if distinct_images else 1,
            batch_size=batch_size,
            first_step=first_step,
            first_epoch=first_epoch,
        )

    def image_of(self, caption: int) -> int:
        """Number of the image that a caption belongs to."""
        return int(np.searchsorted(self.offsets, caption, "right")) - 1

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
    passes, total = sampler.passes, sampler.captions
    kept = sampler.steps_per_pass * sampler.batch_size
    if passes == 1:
        return rng.permutation(total)[:kept].reshape(1, -1, sampler.batch_size)
    # All captions image by image, an image's own in random order. Every pass takes each
    # `passes`-th of them, and so none of an image twice.
    if total == passes * (len(sampler.offsets) - 1):
        captions = rng.permuted(np.arange(total).reshape(-1, passes), axis=1).ravel()
    else:
        # The images, too: one with few captions is not always in the same passes.
        counts = np.diff(sampler.offsets)
        images = np.repeat(rng.permutation(len(counts)).argsort(), counts)
        captions = np.lexsort((rng.random(total), images))
    batches = np.empty((passes, kept), captions.dtype)
    for number, batch in enumerate(batches):
        own = captions[number::passes]
        batch[:] = own[rng.permutation(total // passes)[:kept]]
    return batches.reshape(passes, -1, sampler.batch_size)
