"""A split as records: shards that any host reads at random places, and their index.

    <root>/precomp/<split>_{ids,caps}.txt           as in the published layout
    <root>/array_record/<split>.json                the index of <split>, written last
    <root>/array_record/<split>-00000-of-00002.array_record …
    <root>/tfds/image_text/1.0.0/                   the same as a TFDS data set

A record is an image: its id, its captions, and the picture file's bytes or the region
features. Ids and captions are read from the text files, so that opening a split never
touches a shard. The index holds every file's size, which is checked whenever the split
is opened, and its SHA-256, which --mode=export checks and every download.
"""

import bisect
import hashlib
import io
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Float32
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, file_size, read_bytes
from vse_jax.data.images import PictureBytes
from vse_jax.data.regions import check_region_shape
from vse_jax.data.remote import StoredFile, local_copy

FORMATS = ("array_record", "tfds")
FOLDERS = {"array_record": "array_record", "tfds": "tfds/image_text/1.0.0"}
VERSION = 1


@dataclass(frozen=True)
class Index:
    """What <split>.json holds."""

    version: int
    kind: str  # config.image.kind: grid (picture files) or region (features)
    images: int
    region_shape: tuple[int, ...]  # (regions, features) of every record; () for grid
    source: str  # digest of the files that the records were made from
    texts: dict[str, str]  # name → SHA-256 of the lists in precomp/
    files: tuple[StoredFile, ...]  # the shards in order, then others

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @property
    def shards(self) -> list[StoredFile]:
        return [file for file in self.files if file.records]


def read_index(path: AnyPath) -> Index:
    """Reads an index.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    try:
        data = read_bytes(path)
    except InputError as error:
        raise InputError(f"{error}; --mode=export writes it") from None
    try:
        fields = json.loads(data)
        files = tuple(StoredFile(**file) for file in fields.pop("files"))
        shape = tuple(fields.pop("region_shape"))
        index = Index(**fields, files=files, region_shape=shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no index of an export ({error})") from None
    if index.version != VERSION:
        raise InputError(
            f"{path}: version {index.version}; this program reads {VERSION}"
        )
    return index


def list_names(split: str) -> tuple[str, str]:
    """Names of the two text files of a split, below precomp/."""
    return f"{split}_ids.txt", f"{split}_caps.txt"


def list_digests(root: AnyPath, split: str) -> dict[str, str]:
    """Name → SHA-256 of the text files of a split."""
    return {
        name: hashlib.sha256(read_bytes(root / "precomp" / name)).hexdigest()
        for name in list_names(split)
    }


@runtime_checkable
class Examples(Protocol):
    """Records by their number: the reader of a format."""

    def __getitem__(self, index: int) -> dict: ...


class ArrayRecordExamples:
    """The records of ArrayRecord shards; travels to worker processes as paths."""

    def __init__(self, folder: Path, shards: list[StoredFile]):
        # With the number of records in the name no shard is opened before it is read.
        names = [f"{folder / shard.name}[0:{shard.records}]" for shard in shards]
        self.source = ArrayRecordDataSource(names)

    def __getitem__(self, index: int) -> dict:
        return decode_record(self.source[index])


def encode_record(record: dict) -> bytes:
    """A record of an ArrayRecord shard: msgpack; region features as .npy inside."""
    if "regions" in record:
        content = io.BytesIO()
        np.save(content, record["regions"], allow_pickle=False)
        record = record | {"regions": content.getvalue()}
    return msgpack.packb(record)


def decode_record(data: bytes) -> dict:
    """The inverse of `encode_record`."""
    record = msgpack.unpackb(data)
    if "regions" in record:
        content = io.BytesIO(record["regions"])
        record["regions"] = np.load(content, allow_pickle=False)
    return record


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
            InputError: it is damaged (names the shard).
        """
        try:
            return self.examples[index]
        except Exception as error:  # each reader has types of its own
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.shard_of(index)}: damaged at image {index} of its split "
                f"({reason})"
            ) from None


class RecordPictures:
    """The picture files of a split of records."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> PictureBytes:
        record = self.records[range(len(self))[index]]
        name = f"{self.records.shard_of(index)}, image id {_text(record['id'])!r}"
        return PictureBytes(name, record["image"])


class RecordRegions:
    """The region features of a split of records, row by row."""

    dtype = np.dtype(np.float32)

    def __init__(self, records: Records, region_shape: tuple[int, ...]):
        self.records = records
        self.shape = (len(records), *region_shape)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Float32[np.ndarray, "regions features"]:
        return self.records[range(len(self))[index]]["regions"]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes from TFDS


def open_records(
    config: ConfigDict, root: AnyPath, split: str, images: int
) -> tuple[RecordPictures | None, RecordRegions | None]:
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
    if index.kind != config.image.kind:
        raise InputError(
            f"{path}: an export of image.kind {index.kind!r}; config.image.kind is "
            f"{config.image.kind!r}"
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
        from vse_jax.data.tfds_builder import open_examples

        examples = open_examples(local, split)
    else:
        examples = ArrayRecordExamples(local, index.shards)
    records = Records(folder, index.shards, examples)
    if index.kind == "region":
        return None, RecordRegions(records, index.region_shape)
    return RecordPictures(records), None


def check_size(folder: AnyPath, file: StoredFile) -> None:
    """Raises InputError unless a file of an export is there in full length."""
    size = file_size(folder / file.name)
    if size != file.size:
        raise InputError(
            f"{folder / file.name}: {size} bytes, but {file.size} were exported"
        )
