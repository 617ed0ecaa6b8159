"""--mode=export: a data root in the published layout, written as records.

Run again, it checks every file against its SHA-256 and writes only what is missing,
damaged or made from other data.
"""

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

import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError, check_choice
from vse_jax.base.files import file_sha256, write_atomically
from vse_jax.base.progress import progress
from vse_jax.data import records
from vse_jax.data.layout import Split, claim_root, read_split
from vse_jax.data.records import Index
from vse_jax.data.regions import NpyRows
from vse_jax.data.remote import StoredFile

# One record a read; packed features take five times as long to read.
_WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_SIZE = 256 * 10**6  # bytes of pictures or features in a shard, at most


def export(config: ConfigDict) -> None:
    """Writes every split of config.data.root as records, below config.data.export_to.

    config.data.format says in which form; 'folder', the form that is read, writes both.

    Raises:
        InputError: bad data, a place that is no local folder, or one that holds another
            data set or the export of another kind of images.
    """
    check_choice("config.data.format", config.data.format, ("folder", *records.FORMATS))
    if "://" in config.data.root:
        raise InputError(
            f"config.data.root: {config.data.root}: only a local folder is exported"
        )
    forms: tuple[str, ...] = records.FORMATS
    if config.data.format != "folder":
        forms = (config.data.format,)
    source = config.copy_and_resolve_references()
    source.data.format = "folder"
    splits = [read_split(source, name) for name in _split_names(source)]
    target = _claim_target(config, splits)
    plans = [(split, _blank_index(config, split, target)) for split in splits]
    _check_kinds(target, plans)
    for form in forms:
        folder = target / records.FOLDERS[form]
        good = [_is_good(folder, split, index) for split, index in plans]
        if form == "array_record":
            for plan, is_good in zip(plans, good, strict=True):
                if not is_good:
                    _write_array_record(folder, *plan)
        elif not all(good):
            _write_tfds(folder, plans)
            good = [False] * len(plans)  # TFDS writes a data set as a whole
        for split, is_good in zip(splits, good, strict=True):
            _print_summary(folder, split, "checked" if is_good else "written")


def _split_names(config: ConfigDict) -> list[str]:
    precomp = Path(config.data.root) / "precomp"
    needed = ["_ids.txt", "_caps.txt"]
    if config.image.kind == "region":
        needed.append("_ims.npy")
    names = [
        name
        for name in sorted(p.name[:-8] for p in precomp.glob("*_ids.txt"))
        if all((precomp / f"{name}{end}").is_file() for end in needed)
    ]
    if not names:
        raise InputError(f"{precomp}: no split with {', '.join(needed)} to export")
    return names


def _claim_target(config: ConfigDict, splits: list[Split]) -> Path:
    """The folder to export to, with the splits' lists in it."""
    root, target = Path(config.data.root), Path(config.data.root)
    if config.data.export_to is not None:
        target = Path(config.data.export_to)
        if "://" in config.data.export_to:
            raise InputError(
                f"config.data.export_to: {config.data.export_to}: export to a local "
                "folder, then upload it"
            )
    if target.resolve() == root.resolve():
        return root
    claim_root(target, str(root.resolve()), "config.data.export_to")
    (target / "precomp").mkdir(exist_ok=True)
    for split in splits:
        for name in records.list_names(split.name):
            path = Path("precomp", name)
            write_atomically(target / path, (root / path).read_bytes())
    return target


def _blank_index(config: ConfigDict, split: Split, target: Path) -> Index:
    """The index of an export that is to be written: without files."""
    regions = split.regions
    return Index(
        version=records.VERSION,
        kind=config.image.kind,
        images=len(split.image_ids),
        region_shape=() if regions is None else tuple(regions.shape[1:]),
        source=_source_digest(split),
        texts=records.list_digests(target, split.name),
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
    if isinstance(split.regions, NpyRows):
        return [split.regions.path]
    assert isinstance(split.pictures, list)
    return split.pictures


def _check_kinds(target: Path, plans: list[tuple[Split, Index]]) -> None:
    """Raises InputError where there is an export of the other kind of images."""
    for form in records.FORMATS:
        for split, planned in plans:
            path = target / records.FOLDERS[form] / f"{split.name}.json"
            try:
                kind = records.read_index(path).kind
            except InputError:  # none, or a damaged one, which is written again
                continue
            if kind != planned.kind:
                raise InputError(
                    f"{path}: an export of image.kind {kind!r}; name another folder "
                    "with config.data.export_to"
                )


def _is_good(folder: Path, split: Split, planned: Index) -> bool:
    """Whether the export of a split is there, whole, and of today's data."""
    path = folder / f"{split.name}.json"
    if not path.exists():
        return False
    try:
        index = records.read_index(path)
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
        records.check_size(folder, file)
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
            yield record | {"regions": split.regions[i].astype(np.float32)}
        else:
            yield record | {"image": _picture_bytes(files[i])}


def _picture_bytes(path: Path) -> bytes:
    if path.exists():
        return path.read_bytes()
    # Only with config.data.on_bad_image = 'skip': read as a bad picture, as it was.
    logging.warning("%s: no such picture; exported as an empty one", path)
    return b""


def _write_array_record(folder: Path, split: Split, planned: Index) -> None:
    """Writes a split's shards under other names, renames them, then the index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split.name}.json").unlink(missing_ok=True)
    name = glob.escape(split.name)
    for pattern in (f".{name}-[0-9]*.part", f"{name}-[0-9]*-of-[0-9]*.array_record"):
        for old in folder.glob(pattern):
            old.unlink()
    shards = _shards(split)
    parts = [folder / f".{split.name}-{k:05d}.part" for k in range(len(shards))]
    for part, images in zip(parts, shards, strict=True):
        with _failures_named(part):
            writer = ArrayRecordWriter(str(part), _WRITER_OPTIONS)
            for record in _examples(split, images):
                writer.write(records.encode_record(record))
            writer.close()
    written = []
    for k, (part, images) in enumerate(zip(parts, shards, strict=True)):
        name = f"{split.name}-{k:05d}-of-{len(shards):05d}.array_record"
        part.rename(folder / name)
        written.append((name, len(images)))
    _write_index(folder, split, planned, written)


def _write_tfds(folder: Path, plans: list[tuple[Split, Index]]) -> None:
    from vse_jax.data import tfds_builder  # slow to import

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
        shards = tfds_builder.write(folder.parents[1], examples, *shapes)
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


def _print_summary(folder: Path, split: Split, done: str) -> None:
    index = records.read_index(folder / f"{split.name}.json")
    size = sum(file.size for file in index.files) / 1e6
    print(
        f"{folder}: {split.name}: {index.images:,} images, shards: "
        f"{len(index.shards)}, {size:,.1f} MB, {done}"
    )
