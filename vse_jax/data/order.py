"""Which caption stands where in training: a pure function of (seed, epoch)."""

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

_computing = threading.Lock()


class Place(NamedTuple):
    """Where a training step stands."""

    epoch: int
    step_in_epoch: int
    turn: int  # pass of the epoch
    batch: int  # of the pass


@dataclass(frozen=True)
class Order:
    """The order of the captions, epoch by epoch.

    With `distinct_images` an epoch is captions_per_image passes over the pictures, each
    with a fresh order and another caption of every picture, so that no batch holds a
    picture twice; without it, one pass over all captions. Either way a caption appears
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
        pairs = self.images * self.captions_per_image
        return pairs // self.passes // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.passes * self.steps_per_pass

    def place(self, step: int) -> Place:
        """The place of training step `step`, counted from 0 over the whole run."""
        epochs, step_in_epoch = divmod(step - self.first_step, self.steps_per_epoch)
        turn, batch = divmod(step_in_epoch, self.steps_per_pass)
        return Place(self.first_epoch + epochs, step_in_epoch, turn, batch)

    def batch(self, place: Place) -> Int[np.ndarray, " batch"]:
        """Numbers of the captions of the global batch at `place`."""
        return _epoch_order(self, place.epoch)[place.turn, place.batch]

    def stand_ins(self, place: Place, column: int) -> Iterator[int]:
        """The caption of `column`, then those that may stand in for a bad picture's.

        They come from the same column of the pass's other batches: no other row of this
        batch ever wants them, so a batch of distinct pictures stays one.
        """
        batches = _epoch_order(self, place.epoch)[place.turn]
        for turn in range(len(batches)):
            yield int(batches[(place.batch + turn) % len(batches), column])

    def generator(self, place: Place, column: int) -> np.random.Generator:
        """Random numbers for the augmentation of one element of a batch."""
        # NumPy fills seeds up with zeros: the 1 keeps element 0's apart from the
        # order's, [seed, epoch].
        seed = [self.seed, place.epoch, place.step_in_epoch, column + 1]
        return np.random.default_rng(seed)


def _epoch_order(
    order: Order, epoch: int
) -> Int[np.ndarray, "passes steps_per_pass batch"]:
    # All threads ask for a new epoch's order at the same moment: one computes it.
    with _computing:
        return _compute_epoch_order(order, epoch)


@functools.lru_cache(maxsize=2)  # workers on both sides of an epoch's end
def _compute_epoch_order(order: Order, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([order.seed, epoch])
    images, per_image = order.images, order.captions_per_image
    if order.distinct_images:
        turns = rng.permuted(np.tile(np.arange(per_image), (images, 1)), axis=1)
        passes = [rng.permutation(images) for _ in range(order.passes)]
        captions = np.stack(
            [image * per_image + turns[image, i] for i, image in enumerate(passes)]
        )
    else:
        captions = rng.permutation(images * per_image)[None]
    whole = order.steps_per_pass * order.batch_size
    return captions[:, :whole].reshape(order.passes, -1, order.batch_size)
