"""A split as records: a TensorFlow Datasets data set, read at random places.

    <root>/precomp/<split>_{ids,caps}.txt     as in the published layout
    <root>/tfds/image_text/1.0.0/
        features.json, dataset_info.json      TFDS's own: of the records, the shards
        image_text-<split>.array_record-00000-of-00002 …
        checksums.json                        what TFDS lacks, see `ExportedSplit`

A record is an image: its id, its captions, and the image file's bytes or the region
features. Ids and captions are read from the text files, so that opening a split never
touches a shard.

TFDS opens the same files, and neither it nor TensorFlow is needed here: importing it
takes seconds, and its reader four times as long for region features.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.extras import require_extra
from vse_jax.base.files import AnyPath, file_size, read_bytes
from vse_jax.config import Config, takes_regions
from vse_jax.data.buckets import cached_copy
from vse_jax.data.images import ImageBytes
from vse_jax.data.regions import check_region_shape, finite_regions

FOLDER = "tfds/image_text/1.0.0"
FEATURES, INFO, CHECKSUMS = "features.json", "dataset_info.json", "checksums.json"
VERSION = 1  # of checksums.json

# ---- The files -----------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A file of records."""

    name: str
    records: int
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ExportedSplit:
    """What is known of a split's records.

    A shard's size is checked whenever the split is opened, its SHA-256 by --mode=export
    and by every download.
    """

    shards: tuple[Shard, ...]
    region_shape: tuple[int, ...]  # (regions, features) of every record; () for images
    texts: Mapping[str, str]  # name → SHA-256 of the lists in precomp/
    source: str  # digest of the files that the records were made from
    regions_vary: bool = False  # records may have fewer than region_shape says

    @property
    def kind(self) -> str:
        """The config.image.kind that it is for: grid (image files) or region."""
        return "region" if self.region_shape else "grid"


def read_export(folder: AnyPath) -> dict[str, ExportedSplit]:
    """The splits of an export.

    Raises:
        InputError: there is none, or its JSON files are damaged or of another version.
    """
    path = folder / CHECKSUMS
    try:
        texts = read_bytes(path), read_bytes(folder / INFO)
    except InputError as error:
        raise InputError(f"{error}; --mode=export writes it") from None
    try:
        checksums, info = map(json.loads, texts)
        if checksums["version"] != VERSION:
            raise InputError(
                f"{path}: version {checksums['version']}; this program reads {VERSION}"
            )
        records = {
            split["name"]: list(map(int, split["shardLengths"]))
            for split in info["splits"]
        }
        splits = {}
        for name, fields in checksums["splits"].items():
            sums, count = fields.pop("shards"), len(records[name])
            shards = tuple(
                Shard(shard_name(name, i, count), records[name][i], int(size), sha256)
                for i, (size, sha256) in zip(range(count), sums, strict=True)
            )
            shape = tuple(map(int, fields.pop("region_shape")))
            splits[name] = ExportedSplit(shards, shape, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the checksums of an export ({error})") from None
    return splits


def shard_name(split: str, number: int, count: int) -> str:
    """As TFDS calls it."""
    return f"image_text-{split}.array_record-{number:05d}-of-{count:05d}"


def export_files(splits: Mapping[str, ExportedSplit]) -> dict[str, bytes]:
    """Name → content of the JSON files of an export."""
    info = {
        "name": "image_text",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "disableShuffling": True,
        "splits": [
            {
                "name": name,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(shard.size for shard in split.shards)),
                "shardLengths": [str(shard.records) for shard in split.shards],
            }
            for name, split in splits.items()
        ],
    }
    checksums = {
        name: {
            "region_shape": split.region_shape,
            "source": split.source,
            "regions_vary": split.regions_vary,
            "texts": split.texts,
            "shards": [(shard.size, shard.sha256) for shard in split.shards],
        }
        for name, split in splits.items()
    }
    # TFDS's description of a record: one for all splits, whose numbers of regions may
    # differ.
    base = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{base}.text_feature.Text", "text": {}}
    captions = {
        "pythonClassName": f"{base}.sequence_feature.Sequence",
        "sequence": {"feature": text, "length": "-1"},
    }
    features = {"id": text, "captions": captions}
    counts = {split.region_shape[:1] for split in splits.values()}
    if counts == {()}:
        shape = {"dimensions": ["-1", "-1", "3"]}
        features["image"] = {
            "pythonClassName": f"{base}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": shape},
        }
    else:
        _, dims = next(iter(splits.values())).region_shape
        vary = len(counts) > 1 or any(split.regions_vary for split in splits.values())
        count = "-1" if vary else str(*counts.pop())
        shape = {"dimensions": [count, str(dims)]}
        features["regions"] = {
            "pythonClassName": f"{base}.tensor_feature.Tensor",
            "tensor": {"dtype": "float32", "encoding": "bytes", "shape": shape},
        }
    record = {
        "pythonClassName": f"{base}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    contents = {
        FEATURES: record,
        INFO: info,
        CHECKSUMS: {"version": VERSION, "splits": checksums},
    }
    return {
        name: (json.dumps(content, indent=1) + "\n").encode()
        for name, content in contents.items()
    }


def list_names(split: str) -> tuple[str, str]:
    """Names of the two text files of a split, below precomp/."""
    return f"{split}_ids.txt", f"{split}_caps.txt"


def list_digests(root: AnyPath, split: str) -> dict[str, str]:
    """Name → SHA-256 of the text files of a split."""
    return {
        name: hashlib.sha256(read_bytes(root / "precomp" / name)).hexdigest()
        for name in list_names(split)
    }


def check_size(folder: AnyPath, shard: Shard) -> None:
    """Raises InputError unless a shard is there in full length."""
    file = folder / shard.name
    if (size := file_size(file)) != shard.size:
        raise InputError(f"{file}: {size} bytes, but {shard.size} were exported")


# ---- A record ------------------------------------------------------------------------
#
# TFDS stores tf.train.Example messages. The protocol buffer classes that read them come
# with TensorFlow and TFDS alone, and copy every byte once more.


def encode_example(features: Mapping[str, Sequence[bytes]]) -> bytes:
    """A tf.train.Example whose features are lists of byte strings."""

    def field(number: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        head, size = bytearray([number << 3 | 2]), len(content)
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        return bytes([*head, size]) + content

    entries = [
        # A map's entry: the key, then a Feature with a BytesList.
        field(
            1,
            field(1, name.encode()),
            field(2, field(1, *(field(1, v) for v in values))),
        )
        for name, values in features.items()
    ]
    return field(1, *entries)


def decode_example(data: bytes) -> dict[str, list[memoryview]]:
    """The inverse of `encode_example`, without a copy.

    Raises:
        ValueError, IndexError: other or damaged data.
    """

    def fields(message: memoryview) -> Iterator[memoryview]:
        place = 0
        while place < len(message):
            if message[place] & 7 != 2:
                raise ValueError("a number where bytes are expected")
            size = shift = 0
            while True:
                place += 1
                size |= (message[place] & 127) << shift
                shift += 7
                if message[place] < 128:
                    break
            end = place + 1 + size
            if end > len(message):
                raise ValueError("a field is longer than its record")
            yield message[place + 1 : end]
            place = end

    example = {}
    for features in fields(memoryview(data)):
        for entry in fields(features):
            name, feature = fields(entry)
            (values,) = fields(feature)
            example[str(name, "utf-8")] = list(fields(values))
    return example


# ---- A split -------------------------------------------------------------------------


class Records:
    """The records of a split; travels to worker processes as paths."""

    def __init__(self, folder: AnyPath, local: AnyPath, split: ExportedSplit):
        """`folder` is what errors name, `local` where the shards are read."""
        self.paths = [str(folder / shard.name) for shard in split.shards]
        self.ends = list(itertools.accumulate(shard.records for shard in split.shards))
        self.shape = (self.ends[-1], *split.region_shape)
        # With the number of records in the name no shard is opened before it is read.
        names = [f"{local / shard.name}[0:{shard.records}]" for shard in split.shards]
        require_extra(folder, "train", "array_record")
        from array_record.python.array_record_data_source import (  # noqa: PLC0415
            ArrayRecordDataSource,
        )

        self.source = ArrayRecordDataSource(names)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, image: int, feature: str) -> tuple[memoryview, str]:
        """A feature of an image's record, and what errors call it: shard and image id.

        Raises:
            InputError: it is damaged, or the system does not let it be read (names the
                shard).
        """
        image = range(len(self))[image]
        shard = self.paths[bisect.bisect_right(self.ends, image)]
        try:
            # Not a batch by `__getitems__`, which starts threads at each call and
            # fills fresh memory: docs/lab/data.md has the times.
            record = decode_example(self.source[image])
            where = f"{shard}, image id {str(record['id'][0], 'utf-8')!r}"
            return record[feature][0], where
        except Exception as error:  # ArrayRecord has types of its own
            if refused := refusal(error):
                raise InputError(f"{shard}: {refused.strerror}") from None
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{shard}: damaged at image {image} of its split ({reason})"
            ) from None


class RecordImages(Records):
    """The image files of a split of records."""

    def __getitem__(self, image: int) -> ImageBytes:
        content, where = self.read(image, "image")
        return ImageBytes(where, bytes(content))


class RecordRegions(Records):
    """The region features of a split of records, row by row."""

    def __getitem__(self, image: int) -> Float32[np.ndarray, "regions features"]:
        content, where = self.read(image, "regions")
        _, most, dim = self.shape  # a set may have fewer regions
        count, rest = divmod(len(content), 4 * dim)
        if rest or not 1 <= count <= most:
            raise InputError(f"{where}: {len(content)} bytes of region features")
        features = np.frombuffer(content, "<f4").reshape(count, dim)
        return finite_regions(features, where)


def open_records(
    config: Config, root: AnyPath, split: str, images: int
) -> tuple[RecordImages | None, RecordRegions | None]:
    """Opens a split of records: its images or its region features.

    Checks that the records are of the text files in precomp/ and that every shard is
    there in full length; a damaged record is found when it is read.

    Raises:
        InputError: no such export, one of other data, a missing or truncated shard, or
            region features that do not fit the config.
    """
    folder = root / FOLDER
    path = folder / CHECKSUMS
    exported = read_export(folder).get(split)
    if exported is None:
        raise InputError(f"{path}: no split {split!r}; --mode=export writes it")
    wanted = "region" if takes_regions(config.image) else "grid"
    if exported.kind != wanted:
        raise InputError(
            f"{path}: an export of image.kind {exported.kind!r}; config.image.kind is "
            f"{wanted!r}"
        )
    records = sum(shard.records for shard in exported.shards)
    if exported.texts != list_digests(root, split) or records != images:
        raise InputError(
            f"{path}: its records are not of the {' and '.join(list_names(split))} in "
            f"{root / 'precomp'}; run --mode=export again"
        )
    for shard in exported.shards:
        check_size(folder, shard)
    if wanted == "region":
        check_region_shape(path, exported.region_shape, config.image)
    sizes = {shard.name: (shard.size, shard.sha256) for shard in exported.shards}
    local = cached_copy(folder, sizes, config.data.cache)
    if wanted == "region":
        return None, RecordRegions(folder, local, exported)
    return RecordImages(folder, local, exported), None
