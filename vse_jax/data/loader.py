"""Batches for training (see collate.py), made by grain's workers.

The training stream is a pure function of (config, split, step): an epoch's batches
follow from (seed, epoch), an element's augmentation from (seed, epoch, position in it).
So the stream does not depend on the number or kind of workers and resumes at any step,
and hosts that take their shares of a batch need no agreement.
"""

import contextlib
import functools
from collections.abc import Generator, Iterator

import grain
import numpy as np
from absl import logging

from vse_jax.base.cores import usable_cores
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

_MAX_WORKERS = 16  # each holds a whole batch: 0.4 GB of 128 images of 512 px
_ENDLESS = 2**48  # steps


def training_sampler(
    config: Config, split: Split, first: tuple[int, int] = (0, 0)
) -> Sampler:
    """Which captions of a split make up each training batch.

    `first`: steps and epochs that the run has made with other data.

    Raises:
        InputError: the split is smaller than a batch, or one image.
    """
    sampler = Sampler(
        seed=config.seed,
        offsets=split.offsets,
        batch_size=config.batch_size,
        distinct_images=config.data.distinct_images,
        first_step=first[0],
        first_epoch=first[1],
    )
    if sampler.steps_per_epoch == 0:
        raise InputError(
            f"{split.root}: the {len(split.image_ids)} images and "
            f"{len(split.captions)} captions of split {split.name!r} are too few for a "
            f"batch (config.batch_size = {config.batch_size})"
        )
    if len(split.image_ids) == 1 and config.loss.name in LOSS_CLASSES:
        raise InputError(
            f"{split.root}: split {split.name!r} has one image, which leaves its "
            "captions without negatives"
        )
    return sampler


class TrainData:
    """The training batches of a split, as `sampler` composes them."""

    def __init__(
        self,
        config: Config,
        split: Split,
        tokens: CaptionTokens,
        token_features: NpyRows | np.ndarray | None = None,
        *,
        pack: int = 0,
        first: tuple[int, int] = (0, 0),
    ):
        """
        Args:
            config: the run's.
            split: what to train on.
            tokens: of its captions.
            token_features: of the tokens of all captions; None: batches have token ids.
            pack: devices that pack their tokens (see `packing_devices`).
            first: see `training_sampler`.
        """
        self.config = config
        self.sampler = training_sampler(config, split, first)
        self._images = ImageCollator(config, split)
        self._captions = CaptionCollator(config, tokens, token_features, pack=pack)

    def shapes(self, step: int, last_step: int) -> list[Shapes]:
        """Those of the batches from `step` to the end of its epoch, each once.

        Over all processes, as they come, and none of a step after `last_step`.
        """
        size = self.config.batch_size
        left = self.sampler.steps_per_epoch - self.sampler.position(step).step_in_epoch
        steps = range(step, min(step + left, last_step))
        wanted = (self.sampler.batch(self.sampler.position(step)) for step in steps)
        buckets = dict.fromkeys(self._captions.bucket_of(rows) for rows in wanted)
        pairs = pair_shapes(self.config.image, size)
        return [
            pairs | self._captions.shapes(size, length, packed)
            for length, packed in buckets
        ]

    @contextlib.contextmanager
    def batches(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Iterator[Batch]]:
        """Endless batches from `start_step` on: this process's share of each.

        The shares of all processes, concatenated in their order, are the global batch.
        Workers make batches ahead, as many as config.data.buffer_mb holds.

            with data.batches(step) as batches:
                for batch in batches: ...
        """
        size = self.config.batch_size
        if size % process_count:
            raise InputError(
                f"a batch of {size} does not divide among {process_count} processes"
            )
        rows = size // process_count
        share = slice(process_index * rows, (process_index + 1) * rows)
        make = functools.partial(self._batch, share)
        dataset = grain.MapDataset.range(start_step, _ENDLESS).map(make)

        longest = self._captions.padded_lengths[-1]
        largest = size_of(image_shapes(self.config.image, rows))
        largest += size_of(self._captions.shapes(rows, longest))
        most = max(int(self.config.data.buffer_mb * 1e6) // largest, 1)
        workers = _workers(self.config)
        if self.config.data.workers == "processes":
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            workers = min(workers, max(most // 2, 1))  # each makes one and holds one
            processes = grain.MultiprocessingOptions(num_workers=workers)
            iterator = iter(
                dataset.to_iter_dataset(options).mp_prefetch(processes, own_process)
            )
        else:
            # 'auto', too: decoding and resizing release the interpreter lock, while
            # handing images over from processes takes time of its own; both are timed
            # by python -m benchmarks.data_loading.
            ahead = min(workers + 1, most)
            options = grain.ReadOptions(min(workers, ahead), prefetch_buffer_size=ahead)
            iterator = iter(dataset.to_iter_dataset(options))

        def delivered() -> Generator[Batch]:
            for batch, bad in iterator:
                for message in bad:
                    _report_once(message)
                # Worker processes hand over shared memory. jax may keep using it
                # without a copy of its own, so that it would still be there, and
                # complain, at exit.
                yield {
                    name: values if type(values) is np.ndarray else np.array(values)
                    for name, values in batch.items()
                }

        batches = delivered()
        try:
            yield batches
        finally:
            batches.close()
            iterator.close()

    def _batch(self, share: slice, step: int) -> tuple[Batch, list[str]]:
        """A process's share of a step's batch, and what was wrong with bad images."""
        position = self.sampler.position(step)
        wanted = self.sampler.batch(position)
        length, packed = self._captions.bucket_of(wanted)  # of the global batch
        columns = range(len(wanted))[share]
        batch = self._images.empty(len(columns))
        batch |= self._captions.empty(len(columns), length)
        batch["image_ids"] = np.zeros(len(columns), np.int32)
        bad: list[str] = []
        for row, column in enumerate(columns):
            rng = self.sampler.generator(position, column)
            problems: list[str] = []
            for caption in self.sampler.replacements(position, column):
                if not self._captions.fits(caption, length):
                    continue
                image = self.sampler.image_of(caption)
                try:
                    self._images.read(batch, row, image, rng)
                    break
                except InputError as error:
                    if not self._images.skip:
                        raise
                    problems.append(str(error))
            else:
                raise InputError(f"no pair can replace a bad image's: {problems[0]}")
            self._captions.read(batch, row, caption, rng)
            batch["image_ids"][row] = image
            bad += problems
        self._captions.set_packed_indices(batch, packed, len(wanted))
        return batch, bad


def _workers(config: Config) -> int:
    return config.data.num_workers or min(usable_cores(), _MAX_WORKERS)


@functools.cache
def _report_once(message: str) -> None:
    logging.warning("skipped: %s", message)
