"""Batches for training (see collate.py), made by grain's workers.

The training stream is a pure function of (config, split, step): an epoch's order is
drawn from (seed, epoch), an element's augmentation from (seed, epoch, place in it). So
the stream does not depend on the number or kind of workers and resumes at any step, and
hosts that take their shares of a batch need no agreement.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import grain
import numpy as np
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.config import LOSS_CLASSES, Config
from vse_jax.data.collate import (
    Batch,
    CaptionCollator,
    ImageCollator,
    Shapes,
    image_shapes,
    pair_shapes,
    size_of,
)
from vse_jax.data.dataset import Split
from vse_jax.data.images import own_process
from vse_jax.data.regions import NpyRows
from vse_jax.data.sampler import Sampler
from vse_jax.data.tokenizers import CaptionTokens

_MAX_WORKERS = 16  # each holds a whole batch: 0.4 GB of 128 pictures of 512 px
_ENDLESS = 2**48  # steps

# What a worker makes of a step: a batch, and what was wrong with each bad picture.
_Made = tuple[Batch, tuple[str, ...]]


def training_sampler(
    config: Config, split: Split, first: tuple[int, int] = (0, 0)
) -> Sampler:
    """The order in which a split is trained on.

    Args:
        config: the run's.
        split: what to train on.
        first: steps and epochs that the run has made with other data.

    Raises:
        InputError: the split is smaller than a batch, or one image.
    """
    order = Sampler(
        seed=config.seed,
        images=len(split.image_ids),
        captions_per_image=split.captions_per_image,
        batch_size=config.batch_size,
        distinct_images=config.data.distinct_images,
        first_step=first[0],
        first_epoch=first[1],
    )
    if order.steps_per_epoch == 0:
        raise InputError(
            f"{split.root}: the {len(split.image_ids)} images and "
            f"{len(split.captions)} captions of split {split.name!r} are too few for a "
            f"batch (config.batch_size = {config.batch_size})"
        )
    if order.images == 1 and config.loss.name in LOSS_CLASSES:
        raise InputError(
            f"{split.root}: split {split.name!r} has one image, which leaves its "
            "captions without negatives"
        )
    return order


class TrainData:
    """The training batches of a split, in the order that `data.sampler` describes."""

    def __init__(
        self,
        config: Config,
        split: Split,
        tokens: CaptionTokens,
        token_features: NpyRows | np.ndarray | None = None,
        *,
        pack: bool = False,
        first: tuple[int, int] = (0, 0),
    ):
        """
        Args:
            config: the run's.
            split: what to train on.
            tokens: of its captions.
            token_features: [tokens, H], the rows of `tokens` through a frozen BERT.
            pack: BERT's tokens (see `use_packing`).
            first: as for `training_sampler`.

        Raises:
            InputError: the split is smaller than a batch.
        """
        self.config = config
        self.sampler = training_sampler(config, split, first)
        self._images = ImageCollator(config, split)
        self._captions = CaptionCollator(config, tokens, token_features, pack=pack)

    def shapes(self, epoch: int) -> list[Shapes]:
        """Those of the epoch's batches over all processes, each once, as they come."""
        size = self.config.batch_size
        epochs = epoch - self.sampler.first_epoch
        first = self.sampler.first_step + epochs * self.sampler.steps_per_epoch
        steps = range(first, first + self.sampler.steps_per_epoch)
        wanted = (self.sampler.batch(self.sampler.position(step)) for step in steps)
        buckets = dict.fromkeys(self._captions.bucket_of(rows) for rows in wanted)
        pairs = pair_shapes(self.config.image, size)
        return [pairs | self._captions.shapes(size, *bucket) for bucket in buckets]

    @contextlib.contextmanager
    def batches(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Iterator[Batch]]:
        """Endless batches from `start_step` on: this process's share of each.

        The shares of all processes, concatenated in their order, are the global batch.

            with data.batches(step) as batches:
                for batch in batches: ...
        """
        share = _share(self.config.batch_size, process_index, process_count)
        make = _TrainBatch(self._images, self._captions, self.sampler, share)
        rows = share.stop - share.start
        longest = self._captions.padded_lengths[-1]
        size = size_of(image_shapes(self.config.image, rows))
        size += size_of(self._captions.shapes(rows, longest))
        with _stream(self.config, make, range(start_step, _ENDLESS), size) as batches:
            yield batches


@dataclass(frozen=True)
class _TrainBatch:
    """step → this process's share of that training batch."""

    images: ImageCollator
    captions: CaptionCollator
    sampler: Sampler
    share: slice

    def __call__(self, step: int) -> _Made:
        position = self.sampler.position(step)
        wanted = self.sampler.batch(position)
        length, packed = self.captions.bucket_of(wanted)  # of the global batch
        columns = range(len(wanted))[self.share]
        batch = self.images.empty(len(columns))
        batch |= self.captions.empty(len(columns), length)
        batch["image_ids"] = np.zeros(len(columns), np.int32)
        bad: list[str] = []
        for row, column in enumerate(columns):
            rng = self.sampler.generator(position, column)
            candidates = self.sampler.replacements(position, column)
            fitting = (c for c in candidates if self.captions.fits(c, length))
            caption, problems = self._read_image(batch, row, fitting, rng)
            self.captions.read(batch, row, caption, rng)
            batch["image_ids"][row] = caption // self.sampler.captions_per_image
            bad += problems
        self.captions.set_packed_indices(batch, packed)
        return batch, tuple(bad)

    def _read_image(
        self,
        batch: Batch,
        row: int,
        candidates: Iterator[int],
        rng: np.random.Generator,
    ) -> tuple[int, list[str]]:
        """Reads the first good picture: (its caption, the others' problems)."""
        problems: list[str] = []
        for caption in candidates:
            image = caption // self.sampler.captions_per_image
            try:
                self.images.read(batch, row, image, rng)
            except InputError as error:
                if not self.images.skip:
                    raise
                problems.append(str(error))
            else:
                return caption, problems
        raise InputError(f"no pair can stand in for a bad picture: {problems[0]}")


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} does not divide among {process_count} processes"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


@contextlib.contextmanager
def _stream(
    config: Config,
    make: Callable[[int], _Made],
    steps: range,
    batch_bytes: int,
) -> Iterator[Iterator[Batch]]:
    """make(step) of each step in order, computed ahead by workers.

    batch_bytes: of the largest batch; no more are made ahead than config.data.buffer_mb
    holds.
    """
    kind, workers = _workers(config)
    most = max(int(config.data.buffer_mb * 1e6) // max(batch_bytes, 1), 1)
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(make)
    if kind == "threads":
        ahead = min(workers + 1, most)
        options = grain.ReadOptions(min(workers, ahead), prefetch_buffer_size=ahead)
        iterator = iter(dataset.to_iter_dataset(options))
    else:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        workers = min(workers, max(most // 2, 1))  # each makes one and holds one
        processes = grain.MultiprocessingOptions(num_workers=workers)
        iterator = iter(
            dataset.to_iter_dataset(options).mp_prefetch(processes, own_process)
        )
    batches = _delivered(iterator)
    try:
        yield batches
    finally:
        batches.close()
        iterator.close()


def _delivered(iterator: Iterator[_Made]) -> Generator[Batch]:
    """The batches, in this process, which reports the bad pictures."""
    for batch, bad in iterator:
        for message in bad:
            _report_once(message)
        # Worker processes hand over shared memory. jax may keep using it without a copy
        # of its own, so that it would still be there, and complain, at exit.
        yield {
            name: values if type(values) is np.ndarray else np.array(values)
            for name, values in batch.items()
        }


@functools.cache
def _report_once(message: str) -> None:
    logging.warning("skipped: %s", message)


def _workers(config: Config) -> tuple[str, int]:
    """(threads or processes, how many) for config.data.workers and num_workers.

    'auto' is threads: decoding and resizing release the interpreter lock, while handing
    pictures over from processes takes time of its own; both are timed by
    python -m benchmarks.data_loading.
    """
    kind = config.data.workers
    workers = config.data.num_workers or min(os.cpu_count() or 1, _MAX_WORKERS)
    return "processes" if kind == "processes" else "threads", workers
