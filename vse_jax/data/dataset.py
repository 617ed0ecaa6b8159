"""The published on-disk layout of a data set: read, checked, written.

    <root>/precomp/{train,dev,test,…}_caps.txt  one caption a line, image by image
                   {…}_ids.txt                  the image id of each caption; or each
                                                image id once
                   {…}_ims.npy                  region features [images, K, F]
    <root>/images/…                             (f30k: flickr30k-images/)
    <root>/id_mapping.json                      {image id: path below the image folder}

An image may have any number of captions, at least one. Where each id is listed once
(most published lists), every image has the same number: that of the captions divided by
that of the images. As lists that were cut off may still divide, splits that are listed
in this way must agree in it.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines, read_object, write_atomically
from vse_jax.config import Config, takes_regions
from vse_jax.data.buckets import root_path
from vse_jax.data.lines import Lines
from vse_jax.data.records import RecordImages, RecordRegions, list_names, open_records
from vse_jax.data.regions import NpyRegions, open_regions


@dataclass(frozen=True)
class Split:
    """One split: captions[offsets[i] : offsets[i + 1]] are those of image i.

    `images` are what images.load_image takes; None if a region data set comes
    without them. `regions` (row i for image i) is None for grid models.
    """

    name: str
    root: AnyPath
    image_ids: Lines
    captions: Lines
    offsets: Int[np.ndarray, " bounds"]
    images: list[Path] | RecordImages | None = None
    regions: NpyRegions | RecordRegions | None = None

    @property
    def captions_per_image(self) -> Int[np.ndarray, " images"]:
        """How many captions each image has."""
        return np.diff(self.offsets)

    @property
    def caption_images(self) -> Int[np.ndarray, " captions"]:
        """The number of the image that each caption belongs to."""
        return np.repeat(np.arange(len(self.image_ids)), self.captions_per_image)


def image_folder(name: str) -> str:
    """Name of the image folder of the data set `name` (config.data.name)."""
    return "flickr30k-images" if name == "f30k" else "images"


def read_split(config: Config, split: str) -> Split:
    """Reads and checks a split of config.data.root; see `read_splits`."""
    return read_splits(config, [split])[0]


def read_splits(
    config: Config, names: Sequence[str], *, data_format: str | None = None
) -> list[Split]:
    """Reads and checks splits of config.data.root.

    `data_format` is instead of config.data.format.

    Raises:
        InputError: a missing file, text that is not UTF-8, numbers of images and
            captions that do not fit, or an id without an image file (with
            config.data.on_bad_image = 'skip', it may be missing).
    """
    root = root_path(config.data.root)
    if isinstance(root, Path) and not root.is_dir():
        raise InputError(f"{root}: no such data root (config.data.root)")
    splits: dict[str, Split] = {}
    divided: dict[str, int] = {}  # captions per image of those that list an id once
    for name in names:
        splits[name], divided[name] = _read_lists(root, name)
    for name in (config.data.train_split, config.data.dev_split, config.eval.split):
        if name not in divided:
            with contextlib.suppress(InputError):  # not there, or not read here
                _, divided[name] = _read_lists(root, name)
    divided = {name: count for name, count in divided.items() if count}
    if len(set(divided.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in divided.items())
        raise InputError(
            f"{root / 'precomp'}: the splits differ in their captions per image "
            f"({found}): is a list cut off? If it is meant, list each image's id once "
            "for each of its captions"
        )
    form = data_format or config.data.format
    return [_open_split(config, form, splits[name]) for name in names]


def _open_split(config: Config, form: str, listed: Split) -> Split:
    """The split `listed` with its images, cut to what the config takes of it."""
    root, name, split = listed.root, listed.name, listed

    def cut(said: str, **kept: Any) -> Split:
        less = replace(split, **kept)
        counts = len(less.captions), len(split.captions)
        logging.info(f"split %r: {said}", name, *counts)
        return less

    most = config.data.captions_per_image
    if most is not None and (split.captions_per_image > most).any():
        first = np.repeat(split.offsets[:-1], split.captions_per_image)
        kept = np.flatnonzero(np.arange(len(split.captions)) - first < most).tolist()
        split = cut(
            f"%d of %d captions (config.data.captions_per_image = {most})",
            captions=Lines.of(split.captions[caption] for caption in kept),
            offsets=caption_offsets(np.minimum(split.captions_per_image, most)),
        )
    limit = config.data.dev_captions if name == config.data.dev_split else None
    if limit is not None and len(split.captions) > limit:
        count = int(np.searchsorted(split.offsets, limit, "right")) - 1
        if count == 0:
            raise InputError(
                f"config.data.dev_captions: {limit} is less than the "
                f"{split.offsets[1]} captions of an image in split {name!r}"
            )
        split = cut(
            "the first %d of %d captions (config.data.dev_captions)",
            image_ids=split.image_ids[:count],
            captions=split.captions[: split.offsets[count]],
            offsets=split.offsets[: count + 1],
        )
    images: list[Path] | RecordImages | None
    regions: NpyRegions | RecordRegions | None = None
    if form != "folder":
        images, regions = open_records(config, root, name, len(split.image_ids))
    elif isinstance(root, Path):
        if takes_regions(config.image):
            path, counts = root / f"precomp/{name}_ims.npy", listed.captions_per_image
            regions = open_regions(path, split.image_ids, counts, config.image)
        images = _image_paths(config, root, name, split.image_ids)
    else:
        raise InputError(f"config.data.root: {root}: needs config.data.format 'tfds'")
    return replace(split, images=images, regions=regions)


def caption_offsets(counts: Int[np.ndarray, " images"]) -> Int[np.ndarray, " bounds"]:
    """Where each image's captions begin, and their end, from how many each has."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _read_lists(root: AnyPath, split: str) -> tuple[Split, int]:
    """The text files of a split, without its images.

    Also how many captions each image has, where that is only known by division; else 0.
    """
    ids_file, captions_file = (root / "precomp" / name for name in list_names(split))
    captions, ids = Lines.read(captions_file), Lines.read(ids_file)
    image_ids, counts = _listed_images(ids, ids_file)
    per_image, rest = divmod(len(captions), len(counts))
    if len(ids) == len(captions):
        per_image = 0
    elif len(ids) > len(counts):
        raise InputError(
            f"{captions_file}: {len(captions)} captions do not fit {ids_file.name}, "
            f"which lists {len(counts)} images on {len(ids)} lines"
        )
    elif rest or not per_image:
        raise InputError(
            f"{captions_file}: {len(captions)} captions do not divide by the "
            f"{len(counts)} images of {ids_file.name}"
        )
    offsets = caption_offsets(counts * max(per_image, 1))
    return Split(split, root, image_ids, captions, offsets), per_image


def _image_paths(
    config: Config, root: Path, split: str, image_ids: Lines
) -> list[Path] | None:
    """The split's image files; None for regions without a mapping to any."""
    mapping_file = root / "id_mapping.json"
    for_thumbnails = takes_regions(config.image)
    if for_thumbnails and not mapping_file.is_file():
        return None
    ids_file = root / "precomp" / list_names(split)[0]
    mapping = read_object(mapping_file)
    for image_id in image_ids:
        if not isinstance(mapping.get(image_id), str):
            raise InputError(
                f"{ids_file}: image id {image_id!r} has no image in {mapping_file}"
            )
    folder = root / image_folder(config.data.name)
    paths = [folder / mapping[image_id] for image_id in image_ids]
    if for_thumbnails or config.data.on_bad_image == "skip":
        return paths
    # One listing a folder: asking for 113,287 COCO files one by one takes minutes on a
    # network disk.
    listed: dict[str, set[str]] = {}
    for image_id, path in zip(image_ids, paths, strict=True):
        parent, name = os.path.split(path)
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(parent))
            except OSError as error:
                raise InputError(f"{parent}: {error.strerror}") from None
        if name not in listed[parent]:
            raise InputError(
                f"{path}: no such file, but {ids_file} lists image id {image_id!r}"
            )
    return paths


def _listed_images(
    ids: Lines, path: AnyPath
) -> tuple[Lines, Int[np.ndarray, " images"]]:
    """The image ids, and on how many lines, one after another, each is listed."""
    if (empty := np.flatnonzero(np.diff(ids.ends, prepend=-1) == 1)).size:
        raise InputError(f"{path}, line {empty[0] + 1}: no image id")
    lines = np.array(bytes(ids.buffer).split(b"\n")[:-1])
    firsts = np.flatnonzero(np.append(True, lines[1:] != lines[:-1]))
    listed = lines[firsts]
    # Of ten million strings np.unique would take a minute; this takes two seconds.
    hashes = np.zeros(len(listed), np.uint64)
    for column in listed.view(np.uint8).reshape(len(listed), -1).T:
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + column
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():
        seen: dict[bytes, int] = {}
        for first, image_id in zip(firsts.tolist(), listed.tolist(), strict=True):
            if (before := seen.setdefault(image_id, first)) != first:
                raise InputError(
                    f"{path}, line {first + 1}: image id {ids[first]!r} is already on "
                    f"line {before + 1}"
                )
    counts = np.diff(firsts, append=len(lines))
    if len(firsts) == len(lines):
        return ids, counts
    return Lines.of(ids[first] for first in firsts.tolist()), counts


def claim_root(root: Path, source: str, field: str = "config.data.root") -> None:
    """Marks `root` as made from `source`; call it before writing anything there.

    Raises:
        InputError: `root`, which `field` names, already holds another data set.
    """
    marker = root / "prepared_from.txt"
    owner = read_lines(marker)[0] if marker.is_file() else "somewhere else"
    if owner != source and (marker.is_file() or (root / "precomp").exists()):
        raise InputError(
            f"{root}: already holds a data set made from {owner}, not from {source}; "
            f"name another {field}"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, f"{source}\n".encode())


def write_root(
    root: Path,
    splits: Mapping[str, Iterable[tuple[str, list[str]]]],
    mapping: Mapping[str, str],
) -> None:
    """Writes the lists of a data root whose images are already in their folder.

    An id is listed once where all images have as many captions, as in most published
    lists; else once for each of its captions.

    Args:
        splits: split name → (image id, its captions) in order.
        mapping: image id → path below the image folder.
    """
    precomp = root / "precomp"
    precomp.mkdir(parents=True, exist_ok=True)
    lists = {name: list(rows) for name, rows in splits.items()}
    counts = {len(captions) for rows in lists.values() for _, captions in rows}
    for name, rows in lists.items():
        ids = "".join(
            f"{image_id}\n" * (len(captions) if len(counts) > 1 else 1)
            for image_id, captions in rows
        )
        # A caption is a line: line breaks and runs of spaces inside it become a space.
        captions = "".join(
            f"{' '.join(caption.split())}\n" for _, many in rows for caption in many
        )
        write_atomically(precomp / f"{name}_ids.txt", ids.encode())
        write_atomically(precomp / f"{name}_caps.txt", captions.encode())
    text = json.dumps(dict(mapping), indent=0, ensure_ascii=False)
    write_atomically(root / "id_mapping.json", f"{text}\n".encode())
