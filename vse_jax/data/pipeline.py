"""Batches for training and evaluation (see rows.py), made by grain's workers.

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
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError, check_choice
from vse_jax.data.captions import CaptionTokens
from vse_jax.data.layout import Split
from vse_jax.data.regions import NpyRows
from vse_jax.data.rows import Batch, CaptionRows, ImageRows

_MAX_WORKERS = 16  # each holds a whole batch: 0.4 GB of 128 pictures of 512 px
_ENDLESS = 2**48  # steps


class TrainData:
    """The training batches of a split.

    With config.data.distinct_images an epoch is captions_per_image passes over the
    pictures, each with a fresh order and another caption of every picture, so that no
    batch holds a picture twice; without it, one pass over all captions. Either way a
    caption appears at most once an epoch, and a pass's partial last batch is dropped.
    """

    def __init__(
        self,
        config: ConfigDict,
        split: Split,
        tokens: CaptionTokens,
        token_features: NpyRows | np.ndarray | None = None,
    ):
        """`token_features` [tokens, H] are the rows of `tokens` through a frozen BERT.

        Raises:
            InputError: the split is smaller than a batch.
        """
        self.config = config
        self.pairs = len(split.captions)
        self._order = _Order(
            seed=config.seed,
            images=len(split.image_ids),
            captions_per_image=split.captions_per_image,
            batch_size=config.batch_size,
            distinct_images=config.data.distinct_images,
        )
        self._images = ImageRows(config, split)
        self._captions = CaptionRows(config, tokens, token_features)
        self.steps_per_epoch = self._order.steps_per_epoch
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{split.root}: the {len(split.image_ids)} images and {self.pairs} "
                f"captions of split {split.name!r} are too few for a batch "
                f"(config.batch_size = {config.batch_size})"
            )

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
        make = _TrainBatch(self._images, self._captions, self._order, share)
        with _stream(self.config, make, start_step, _ENDLESS) as batches:
            yield batches


def eval_batches(
    config: ConfigDict,
    split: Split,
    what: str,
    tokens: CaptionTokens | None = None,
    token_features: NpyRows | np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every image ('images') or caption ('captions') of a split once: (batch, index).

    index [B] int32 says which image or caption each row is, −1 for the padding that
    fills the last batch; every process gets the same number of batches. Captions (they
    need `tokens`) come sorted by length, so that short ones are padded little.
    """
    size = config.eval.batch_size
    share = _share(size, process_index, process_count)
    make: _EvalImages | _EvalCaptions
    if what == "images":
        order = _padded(np.arange(len(split.image_ids)), size)
        make = _EvalImages(ImageRows(config, split), order, share)
    else:
        assert tokens is not None
        order = _padded(np.argsort(tokens.lengths, kind="stable"), size)
        captions = CaptionRows(config, tokens, token_features)
        make = _EvalCaptions(captions, order, share)
    with _stream(config, make, 0, len(order)) as batches:
        for batch in batches:
            index = batch.pop("index")
            yield batch, index


def _padded(order: np.ndarray, size: int) -> np.ndarray:
    """`order` as rows of `size`, the last filled with −1."""
    return np.append(order, np.full(-len(order) % size, -1)).reshape(-1, size)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} does not divide among {process_count} processes"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


@dataclass(frozen=True)
class _Order:
    """Which caption stands where: a function of (seed, epoch)."""

    seed: int
    images: int
    captions_per_image: int
    batch_size: int
    distinct_images: bool

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


@functools.lru_cache(maxsize=2)  # workers on both sides of an epoch's end
def _epoch_order(order: _Order, epoch: int) -> np.ndarray:
    """Caption indices [passes, steps_per_pass, batch_size] of an epoch."""
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


# What a worker makes of a step: a batch, and what was wrong with each bad picture.
_Made = tuple[Batch, tuple[str, ...]]


@dataclass(frozen=True)
class _TrainBatch:
    """step → this process's share of that training batch."""

    images: ImageRows
    captions: CaptionRows
    order: _Order
    share: slice

    def __call__(self, step: int) -> _Made:
        epoch, step_in_epoch = divmod(step, self.order.steps_per_epoch)
        turn, place = divmod(step_in_epoch, self.order.steps_per_pass)
        order = _epoch_order(self.order, epoch)[turn]
        length = self.captions.padded_length(order[place])  # of the global batch
        columns = range(self.order.batch_size)[self.share]
        batch = self.images.empty(len(columns))
        batch |= self.captions.empty(len(columns), length)
        bad: list[str] = []
        for row, column in enumerate(columns):
            # NumPy fills seeds up with zeros: the 1 keeps element 0's apart from the
            # order's, [seed, epoch].
            seed = [self.order.seed, epoch, step_in_epoch, column + 1]
            rng = np.random.default_rng(seed)
            candidates = self._candidates(order, place, column, length)
            caption, problems = self._read_image(batch, row, candidates, rng)
            self.captions.read(batch, row, caption, rng)
            bad += problems
        return batch, tuple(bad)

    def _candidates(
        self, order: np.ndarray, place: int, column: int, longest: int
    ) -> Iterator[int]:
        """The caption order[place, column], then those that may stand in for it.

        They come from the same column of the pass's other batches: no other row of this
        batch ever wants them, so a batch of distinct pictures stays one.
        """
        for turn in range(len(order)):
            caption = int(order[(place + turn) % len(order), column])
            if self.captions.tokens.lengths[caption] <= longest:
                yield caption

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
            image = caption // self.order.captions_per_image
            try:
                self.images.read(batch, row, image, rng)
            except InputError as error:
                if not self.images.skip:
                    raise
                problems.append(str(error))
            else:
                return caption, problems
        raise InputError(f"no pair can stand in for a bad picture: {problems[0]}")


@dataclass(frozen=True)
class _EvalImages:
    """step → this process's share of an evaluation batch of images, with its index."""

    images: ImageRows
    order: np.ndarray
    share: slice

    def __call__(self, step: int) -> _Made:
        index = self.order[step, self.share].astype(np.int32)
        batch = self.images.empty(len(index))
        bad: list[str] = []
        for row, image in enumerate(index[index >= 0].tolist()):
            try:
                self.images.read(batch, row, image, None)
            except InputError as error:
                # Another picture would falsify the result: the row stays blank.
                if not self.images.skip:
                    raise
                bad.append(str(error))
        return batch | {"index": index}, tuple(bad)


@dataclass(frozen=True)
class _EvalCaptions:
    """step → the same of captions."""

    captions: CaptionRows
    order: np.ndarray
    share: slice

    def __call__(self, step: int) -> _Made:
        everyones = self.order[step]
        index = everyones[self.share].astype(np.int32)
        length = self.captions.padded_length(everyones[everyones >= 0])
        batch = self.captions.empty(len(index), length)
        for row, caption in enumerate(index[index >= 0].tolist()):
            self.captions.read(batch, row, caption, None)
        return batch | {"index": index}, ()


@contextlib.contextmanager
def _stream(
    config: ConfigDict,
    make: Callable[[int], _Made],
    start: int,
    stop: int,
) -> Iterator[Iterator[Batch]]:
    """make(start), make(start + 1), … in order, computed ahead by workers."""
    kind, workers = _workers(config)
    dataset = grain.MapDataset.range(start, stop).map(make)
    if kind == "threads":
        options = grain.ReadOptions(workers, prefetch_buffer_size=workers + 1)
        iterator = iter(dataset.to_iter_dataset(options))
    else:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(num_workers=workers)
        iterator = iter(dataset.to_iter_dataset(options).mp_prefetch(processes))
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


def _workers(config: ConfigDict) -> tuple[str, int]:
    """(threads or processes, how many) for config.data.workers and num_workers.

    'auto' is threads: decoding and resizing release the interpreter lock, while handing
    pictures over from processes costs half the work of making them at 96 px and twice
    that work at 512 px.
    """
    kind = config.data.workers
    check_choice("config.data.workers", kind, ("auto", "threads", "processes"))
    workers = config.data.num_workers or min(os.cpu_count() or 1, _MAX_WORKERS)
    return "processes" if kind == "processes" else "threads", workers
