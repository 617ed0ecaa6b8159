"""--mode=export: a data root in the published layout, written as records.

Run again, it checks every shard against its SHA-256, and writes only splits that are
missing, damaged or made from other data.
"""

import hashlib
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter

from vse_jax.base.errors import InputError
from vse_jax.base.files import file_sha256, whole_folder, write_atomically
from vse_jax.base.progress import progress
from vse_jax.config import Config, takes_regions, with_fields
from vse_jax.data.dataset import Split, claim_root, read_splits
from vse_jax.data.records import (
    CHECKSUMS,
    FOLDER,
    ExportedSplit,
    Shard,
    check_size,
    encode_example,
    export_files,
    list_digests,
    list_names,
    read_export,
    shard_name,
)
from vse_jax.data.regions import NpyRegions, lengths_file

# One record a read: packing records together makes reading features slower.
_WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_SIZE = 256 * 10**6  # bytes of images or features in a shard, at most


def export(config: Config) -> None:
    """Writes every split of config.data.root as records, below config.data.export_to.

    Raises:
        InputError: bad data, a place that is no local folder, or one that holds another
            data set or the export of another kind of images.
    """
    if "://" in config.data.root:
        raise InputError(
            f"config.data.root: {config.data.root}: only a local folder is exported"
        )
    # The lists are copied with all captions, so that the records hold all.
    config = with_fields(config, {"data.captions_per_image": None})
    splits = read_splits(config, _split_names(config), data_format="folder")
    target = _claim_target(config, splits)
    folder = target / FOLDER
    planned = {
        split.name: ExportedSplit(
            shards=(),
            region_shape=() if split.regions is None else split.regions.shape[1:],
            texts=list_digests(target, split.name),
            source=_source_digest(split),
            regions_vary=getattr(split.regions, "lengths", None) is not None,
        )
        for split in splits
    }
    there: dict[str, ExportedSplit] = {}
    if (folder / CHECKSUMS).exists():
        try:
            there = read_export(folder)
        except InputError as error:
            logging.warning("%s; written again", error)
    kinds = {split.kind for split in planned.values()}
    for split in there.values():
        if split.kind not in kinds:
            raise InputError(
                f"{folder / CHECKSUMS}: an export of image.kind {split.kind!r}; name "
                "another folder with config.data.export_to"
            )
    intact = {
        name: there[name]
        for name, plan in planned.items()
        if name in there and _is_intact(folder, name, there[name], plan)
    }
    exported = intact
    if intact.keys() != planned.keys() or any(
        not (folder / name).is_file() or (folder / name).read_bytes() != content
        for name, content in export_files(intact).items()
    ):
        exported = _write(folder, splits, planned, intact)
    for name, split in exported.items():
        images = sum(shard.records for shard in split.shards)
        size = sum(shard.size for shard in split.shards) / 1e6
        print(
            f"{folder}: {name}: {images:,} images, shards: {len(split.shards)}, "
            f"{size:,.1f} MB, {'checked' if name in intact else 'written'}"
        )


def _split_names(config: Config) -> list[str]:
    precomp = Path(config.data.root) / "precomp"
    needed = ["_ids.txt", "_caps.txt"]
    if takes_regions(config.image):
        needed.append("_ims.npy")
    names = [
        name
        for name in sorted(p.name[:-8] for p in precomp.glob("*_ids.txt"))
        if all((precomp / f"{name}{end}").is_file() for end in needed)
    ]
    if not names:
        raise InputError(f"{precomp}: no split with {', '.join(needed)} to export")
    for name in names:
        # TFDS reads 'all' as the union of the splits, and some signs as its syntax.
        if name == "all" or not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"{precomp}: split {name!r}: no name that TFDS takes; rename its files"
            )
    return names


def _claim_target(config: Config, splits: list[Split]) -> Path:
    """The folder to export to, with the splits' lists in it."""
    root, named = Path(config.data.root), config.data.export_to
    if named is not None and "://" in named:
        raise InputError(
            f"config.data.export_to: {named}: export to a local folder, then upload it"
        )
    target = root if named is None else Path(named)
    if target.resolve() == root.resolve():
        return root
    claim_root(target, str(root.resolve()), "config.data.export_to")
    (target / "precomp").mkdir(exist_ok=True)
    for split in splits:
        for name in list_names(split.name):
            path = Path("precomp", name)
            write_atomically(target / path, (root / path).read_bytes())
    return target


def _source_files(split: Split) -> list[Path]:
    """The images, or the feature file, of a split that was read from a folder."""
    if isinstance(split.regions, NpyRegions):
        lengths = lengths_file(split.regions.path)
        return [split.regions.path, *([lengths] if lengths.is_file() else [])]
    assert isinstance(split.images, list)
    return split.images


def _source_digest(split: Split) -> str:
    """Changes when an image or feature file of the split does: names, sizes, times."""
    digest = hashlib.sha256()
    for path in _source_files(split):
        name = os.path.relpath(path, os.fspath(split.root))
        status = path.stat() if path.exists() else None
        facts = status and (status.st_size, status.st_mtime_ns)
        digest.update(f"{name} {facts}\n".encode())
    return digest.hexdigest()


def _is_intact(
    folder: Path, name: str, there: ExportedSplit, planned: ExportedSplit
) -> bool:
    """Whether the records of a split are there in full, and of today's data."""
    try:
        shards = progress(there.shards, f"checking {folder}: {name}", unit="files")
        for shard in shards:
            check_size(folder, shard)
            if file_sha256(folder / shard.name) != shard.sha256:
                raise InputError(f"{folder / shard.name}: damaged")
        if replace(there, shards=()) != planned:
            raise InputError(f"{folder}: {name}: made from other files")
    except InputError as error:
        logging.warning("%s; written again", error)
        return False
    return True


def _write(
    folder: Path,
    splits: list[Split],
    planned: dict[str, ExportedSplit],
    intact: dict[str, ExportedSplit],
) -> dict[str, ExportedSplit]:
    """Writes the folder of an export as a whole; shards of `intact` splits are kept."""
    # What killed exports left.
    for left in folder.parent.glob(f".{folder.name}.*"):
        if not left.name.endswith(".before"):
            shutil.rmtree(left, ignore_errors=True)
    exported = dict(intact)
    with whole_folder(folder, replace=True) as new:
        for shard in itertools.chain(*(split.shards for split in intact.values())):
            try:
                os.link(folder / shard.name, new / shard.name)
            except OSError:  # a file system without links
                shutil.copy2(folder / shard.name, new / shard.name)
        for split in (split for split in splits if split.name not in intact):
            sizes = _record_sizes(split)
            starts, filled = [0], 0
            for image, size in enumerate(sizes):
                if filled and filled + size > SHARD_SIZE:
                    starts.append(image)
                    filled = 0
                filled += size
            written = []
            for i, start in enumerate(starts):
                images = range(start, [*starts, len(sizes)][i + 1])
                path = new / shard_name(split.name, i, len(starts))
                try:
                    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
                    for record in _records(split, images):
                        writer.write(record)
                    writer.close()
                except RuntimeError as error:  # a full disk
                    reason = " ".join(str(error).split())
                    raise InputError(
                        f"{folder / path.name}: could not be written ({reason})"
                    ) from None
                size, sha256 = path.stat().st_size, file_sha256(path)
                written.append(Shard(path.name, len(images), size, sha256))
            exported[split.name] = replace(planned[split.name], shards=tuple(written))
        exported = {name: exported[name] for name in planned}
        for name, content in export_files(exported).items():
            write_atomically(new / name, content)
    return exported


def _record_sizes(split: Split) -> list[int]:
    """Bytes of the image or the features in each record."""
    if split.regions is not None:
        return [4 * math.prod(split.regions.shape[1:])] * len(split.image_ids)
    files = _source_files(split)
    return [path.stat().st_size if path.exists() else 0 for path in files]


def _records(split: Split, images: range) -> Iterator[bytes]:
    """The records of some images of a split, in order."""
    files = _source_files(split)
    what, total = f"writing {split.name}", len(split.image_ids)
    for i in progress(images, what, total, "images", initial=images.start):
        captions = split.captions[split.offsets[i] : split.offsets[i + 1]]
        record = {
            "id": [split.image_ids[i].encode()],
            "captions": [caption.encode() for caption in captions],
        }
        if split.regions is not None:
            record["regions"] = [split.regions[i].astype("<f4").tobytes()]
        elif files[i].exists():
            record["image"] = [files[i].read_bytes()]
        else:
            # Only with config.data.on_bad_image = 'skip': a bad image, as it was.
            logging.warning("%s: no such image; exported as an empty one", files[i])
            record["image"] = [b""]
        yield encode_example(record)
