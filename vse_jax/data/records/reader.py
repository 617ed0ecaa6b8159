"""A split as records: shards that any host reads at random places.

    <root>/precomp/<split>_{ids,caps}.txt           as in the published layout
    <root>/array_record/<split>.json                the index of <split>
    <root>/array_record/<split>-00000-of-00002.array_record …
    <root>/tfds/image_text/1.0.0/                   the same as a TFDS data set

A record is an image: its id, its captions, and the picture file's bytes or the region
features. Ids and captions are read from the text files, so that opening a split never
touches a shard.
"""

import bisect
import hashlib
import itertools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.files import AnyPath
from vse_jax.config import Config, takes_regions
from vse_jax.data.images import ImageBytes
from vse_jax.data.records.array_record import ArrayRecordExamples
from vse_jax.data.records.buckets import local_copy
from vse_jax.data.records.index import (
    FOLDERS,
    StoredFile,
    check_size,
    list_digests,
    list_names,
    read_index,
)
from vse_jax.data.regions import check_region_shape, finite_regions


@runtime_checkable
class Examples(Protocol):
    """Records by their number: the reader of a format."""

    def __getitem__(self, index: int) -> dict: ...


class Records:
    """The records of a split: examples, and which shard to name when one is damaged."""

    def __init__(self, folder: AnyPath, shards: list[StoredFile], examples: Examples):
        self.paths = [str(folder / shard.name) for shard in shards]
        self.ends = list(itertools.accumulate(shard.records for shard in shards))
        self.examples = examples

    def __len__(self) -> int:
        return self.ends[-1]

    def shard_of(self, index: int) -> str:
        return self.paths[bisect.bisect_right(self.ends, index)]

    def __getitem__(self, index: int) -> dict:
        """The record of image `index`.

        Raises:
            InputError: it is damaged, or the system does not let it be read (names the
                shard).
        """
        try:
            return self.examples[index]
        except Exception as error:  # each reader has types of its own
            if refused := refusal(error):
                raise InputError(
                    f"{self.shard_of(index)}: {refused.strerror}"
                ) from None
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.shard_of(index)}: damaged at image {index} of its split "
                f"({reason})"
            ) from None


class RecordImages:
    """The picture files of a split of records."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ImageBytes:
        index = range(len(self))[index]
        record = self.records[index]
        return ImageBytes(_name(self.records, index, record), record["image"])


class RecordRegions:
    """The region features of a split of records, row by row."""

    dtype = np.dtype(np.float32)

    def __init__(self, records: Records, region_shape: tuple[int, ...]):
        self.records = records
        self.shape = (len(records), *region_shape)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Float32[np.ndarray, "regions features"]:
        index = range(len(self))[index]
        record = self.records[index]
        return finite_regions(record["regions"], _name(self.records, index, record))


def _name(records: Records, index: int, record: dict) -> str:
    """Names a record in errors: its shard and the id of its image."""
    id = record["id"]
    text = id.decode() if isinstance(id, bytes) else id  # bytes from TFDS
    return f"{records.shard_of(index)}, image id {text!r}"


def open_records(
    config: Config, root: AnyPath, split: str, images: int
) -> tuple[RecordImages | None, RecordRegions | None]:
    """Opens a split of config.data.format: its pictures or its region features.

    Checks that the records are of the text files in precomp/ and that every file is
    there in full length; a damaged record is found when it is read.

    Raises:
        InputError: no such export, one of other data, a missing or truncated shard, or
            region features that do not fit the config.
    """
    folder = root / FOLDERS[config.data.format]
    path = folder / f"{split}.json"
    index = read_index(path)
    wanted = "region" if takes_regions(config.image) else "grid"
    if index.kind != wanted:
        raise InputError(
            f"{path}: an export of image.kind {index.kind!r}; config.image.kind is "
            f"{wanted!r}"
        )
    if index.texts != list_digests(root, split) or index.images != images:
        raise InputError(
            f"{path}: its records are not of the {' and '.join(list_names(split))} in "
            f"{root / 'precomp'}; run --mode=export again"
        )
    for file in index.files:
        check_size(folder, file)
    if index.kind == "region":
        c = config.image
        sets, features = index.region_shape
        check_region_shape(path, sets, features, c.max_regions, c.feature_dim)
    key = hashlib.sha256(index.to_json()).hexdigest()[:32]
    local = local_copy(folder, index.files, config.data.cache, key)
    examples: Examples
    if config.data.format == "tfds":
        # TFDS takes long to import and is needed for nothing else.
        from vse_jax.data.records.tfds import open_examples  # noqa: PLC0415

        examples = open_examples(local, split)
    else:
        examples = ArrayRecordExamples(local, index.shards)
    records = Records(folder, index.shards, examples)
    if index.kind == "region":
        return None, RecordRegions(records, index.region_shape)
    return RecordImages(records), None
