"""Writes a split that was read from a folder as records (see records/reader.py)."""

import contextlib
import functools
import glob
import hashlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter

from vse_jax.base.errors import InputError
from vse_jax.base.files import file_sha256, write_atomically
from vse_jax.base.progress import progress
from vse_jax.config import Config, takes_regions
from vse_jax.data.dataset import Split
from vse_jax.data.records.array_record import encode_record
from vse_jax.data.records.index import (
    VERSION,
    Index,
    StoredFile,
    check_size,
    list_digests,
    read_index,
)
from vse_jax.data.regions import NpyRegions

# One record a read: packing records together makes reading features slower.
_WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_SIZE = 256 * 10**6  # bytes of pictures or features in a shard, at most


def blank_index(config: Config, split: Split, target: Path) -> Index:
    """The index of an export that is to be written: without files."""
    regions = split.regions
    return Index(
        version=VERSION,
        kind="region" if takes_regions(config.image) else "grid",
        images=len(split.image_ids),
        region_shape=() if regions is None else tuple(regions.shape[1:]),
        source=_source_digest(split),
        texts=list_digests(target, split.name),
        files=(),
    )


def _source_digest(split: Split) -> str:
    """Changes when a picture or feature file of the split does: names, sizes, times."""
    digest = hashlib.sha256()
    for path in _source_files(split):
        name = os.path.relpath(path, os.fspath(split.root))
        status = path.stat() if path.exists() else None
        facts = status and (status.st_size, status.st_mtime_ns)
        digest.update(f"{name} {facts}\n".encode())
    return digest.hexdigest()


def _source_files(split: Split) -> list[Path]:
    """The pictures, or the feature file, of a split that was read from a folder."""
    if isinstance(split.regions, NpyRegions):
        return [split.regions.path]
    assert isinstance(split.images, list)
    return split.images


def is_good(folder: Path, split: Split, planned: Index) -> bool:
    """Whether the export of a split is there, whole, and of today's data."""
    path = folder / f"{split.name}.json"
    if not path.exists():
        return False
    try:
        index = read_index(path)
        _check_files(folder, index)
    except InputError as error:
        logging.warning("%s; written again", error)
        return False
    if replace(index, files=()) != planned:
        logging.warning("%s: made from other files; written again", path)
        return False
    return True


def _check_files(folder: Path, index: Index) -> None:
    for file in progress(index.files, f"checking {folder}", unit="files"):
        check_size(folder, file)
        if file_sha256(folder / file.name) != file.sha256:
            raise InputError(f"{folder / file.name}: damaged")


def _shards(split: Split) -> list[range]:
    """The images of each shard."""
    if split.regions is not None:
        sizes = [4 * math.prod(split.regions.shape[1:])] * len(split.image_ids)
    else:
        files = _source_files(split)
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]
    starts, filled = [0], 0
    for image, size in enumerate(sizes):
        if filled and filled + size > SHARD_SIZE:
            starts.append(image)
            filled = 0
        filled += size
    return [range(*ends) for ends in itertools.pairwise([*starts, len(sizes)])]


def _examples(split: Split, images: range) -> Iterator[dict]:
    """The records of some images of a split, in order."""
    per = split.captions_per_image
    files = _source_files(split)
    count = len(split.image_ids)
    what = f"writing {split.name}"
    for i in progress(images, what, count, "images", initial=images.start):
        record = {
            "id": split.image_ids[i],
            "captions": split.captions[i * per : (i + 1) * per],
        }
        if split.regions is not None:
            yield record | {"regions": split.regions[i]}
        else:
            yield record | {"image": _picture_bytes(files[i])}


def _picture_bytes(path: Path) -> bytes:
    if path.exists():
        return path.read_bytes()
    # Only with config.data.on_bad_image = 'skip': read as a bad picture, as it was.
    logging.warning("%s: no such picture; exported as an empty one", path)
    return b""


def write_array_record(folder: Path, split: Split, planned: Index) -> None:
    """Writes a split's shards under other names, renames them, then the index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split.name}.json").unlink(missing_ok=True)
    name = glob.escape(split.name)
    number = 5 * "[0-9]"  # "[0-9]*" would match the shards of a split 'train-2', too
    for pattern in (
        f".{name}-{number}.part",
        f"{name}-{number}-of-{number}.array_record",
    ):
        for old in folder.glob(pattern):
            old.unlink()
    shards = _shards(split)
    parts = [folder / f".{split.name}-{k:05d}.part" for k in range(len(shards))]
    for part, images in zip(parts, shards, strict=True):
        with _failures_named(part):
            writer = ArrayRecordWriter(str(part), _WRITER_OPTIONS)
            for record in _examples(split, images):
                writer.write(encode_record(record))
            writer.close()
    written = []
    for k, (part, images) in enumerate(zip(parts, shards, strict=True)):
        name = f"{split.name}-{k:05d}-of-{len(shards):05d}.array_record"
        part.rename(folder / name)
        written.append((name, len(images)))
    _write_index(folder, split, planned, written)


def write_tfds(folder: Path, plans: list[tuple[Split, Index]]) -> None:
    from vse_jax.data.records import tfds  # noqa: PLC0415 (slow to import)

    shapes = {planned.region_shape for _, planned in plans}
    if len(shapes) > 1:  # TFDS knows one shape for all splits
        raise InputError(
            f"{folder}: not for splits of different region features {sorted(shapes)}; "
            "export with config.data.format='array_record'"
        )
    # An older version, and what killed exports left: TFDS names it *.incomplete*.
    shutil.rmtree(folder.parent, ignore_errors=True)
    examples = {
        split.name: [functools.partial(_examples, split, s) for s in _shards(split)]
        for split, _ in plans
    }
    with _failures_named(folder):
        shards = tfds.write(folder.parents[1], examples, *shapes)
    for split, planned in plans:
        _write_index(folder, split, planned, shards[split.name])


@contextlib.contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """What ArrayRecord's writer says of a full disk, as one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: could not be written ({reason})") from None


def _write_index(
    folder: Path, split: Split, planned: Index, shards: list[tuple[str, int]]
) -> None:
    others = [(name, 0) for name in ("dataset_info.json", "features.json")]
    files = [
        StoredFile(name, path.stat().st_size, file_sha256(path), count)
        for name, count in (*shards, *others)
        if (path := folder / name).exists()
    ]
    index = replace(planned, files=tuple(files))
    write_atomically(folder / f"{split.name}.json", index.to_json())
