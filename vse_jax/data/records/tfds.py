"""A data root as a TensorFlow Datasets data set, without TensorFlow.

What --mode=export writes is opened by TFDS itself:

    tfds.builder_from_directory("<root>/tfds/image_text/1.0.0").as_data_source("train")
"""

import contextlib
import functools
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from vse_jax.base.errors import InputError

# split → its shards, each a function that makes its records (id, captions, and image:
# bytes or regions: array) afresh.
Splits = Mapping[str, Sequence[Callable[[], Iterable[dict]]]]


class ImageText(tfds.core.ShardBasedBuilder):
    """Images with their captions; order, splits and shards are those that it is given.

    TFDS's GeneratorBasedBuilder would need TensorFlow for more than a gigabyte.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, splits: Splits, region_shape: tuple[int, ...], **kwargs
    ) -> None:
        """`region_shape` is (regions, features), or () for pictures."""
        self._splits = splits  # first: TFDS asks for _info() in its own __init__
        self._region_shape = region_shape
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        if self._region_shape:
            features["regions"] = tfds.features.Tensor(
                shape=self._region_shape,
                dtype=np.float32,
                encoding=tfds.features.Encoding.BYTES,
            )
        else:
            features["image"] = tfds.features.Image()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        return {
            name: [
                functools.partial(_keyed, shard, k) for k, shard in enumerate(shards)
            ]
            for name, shards in self._splits.items()
        }


def _keyed(shard: Callable[[], Iterable[dict]], number: int) -> Iterator[tuple]:
    """(key, example) pairs, as TFDS wants them, of the shard `number`."""
    for place, record in enumerate(shard()):
        if "image" in record:  # a file object: TFDS keeps its bytes as they are
            record = record | {"image": io.BytesIO(record["image"])}
        yield f"{number}-{place}", record


def write(
    data_dir: Path, splits: Splits, region_shape: tuple[int, ...]
) -> dict[str, list[tuple[str, int]]]:
    """Writes all splits below `data_dir`: split → (shard file's name, its records).

    TFDS writes into a folder of another name and renames it when all is done.

    Raises:
        InputError: a split's name means something else to TFDS, or nothing.
    """
    for name in splits:
        if name == "all" or not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"split {name!r}: no name that TFDS takes; export with "
                "config.data.format='array_record', or rename its files in precomp/"
            )
    builder = ImageText(data_dir=data_dir, splits=splits, region_shape=region_shape)
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it reports a "download"
        builder.download_and_prepare(download_config=options)
    shutil.rmtree(data_dir / "downloads", ignore_errors=True)  # empty
    return {
        name: list(zip(sorted(info.filenames), info.shard_lengths, strict=True))
        for name, info in builder.info.splits.items()
    }


def open_examples(folder: Path, split: str):
    """The records of a split of the data set in `folder`; text comes as bytes.

    Picture files stay as they are: our own decoder decides what is readable.
    """
    builder = tfds.builder_from_directory(folder)
    decoders = None
    if "image" in builder.info.features:
        decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=decoders)
