"""The published on-disk layout of a data set: read, checked, written.

    <root>/precomp/{train,dev,test,…}_ids.txt   one image id a line
                   {…}_caps.txt                 one caption a line, image by image
                   {…}_ims.npy                  region features [images, K, F]
    <root>/images/…                             (f30k: flickr30k-images/)
    <root>/id_mapping.json                      {image id: path below the image folder}

Every image of a root has the same number of captions (five in the published sets), or
with config.data.equal_captions = False every image of a split. Caption i belongs to
image i // captions_per_image. The published COCO lists repeat an image's id once for
each of its captions; both ways of listing are read.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines, read_object, write_atomically
from vse_jax.config import Config, takes_regions
from vse_jax.data.buckets import root_path
from vse_jax.data.records import RecordImages, RecordRegions, list_names, open_records
from vse_jax.data.regions import NpyRegions, open_regions


@dataclass(frozen=True)
class Split:
    """One split: image i owns captions[i * captions_per_image :][:captions_per_image].

    `images` are what images.load_image takes; None if a region data set comes
    without them. `regions` (row i for image i) is None for grid models.
    """

    name: str
    root: AnyPath
    image_ids: list[str]
    captions: list[str]
    captions_per_image: int
    images: list[Path] | RecordImages | None = None
    regions: NpyRegions | RecordRegions | None = None


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

    With config.data.equal_captions their number of captions per image is compared, also
    with that of the config's other splits that are there: a list that lost lines may
    still divide evenly. `data_format` is instead of config.data.format.

    Raises:
        InputError: a missing file, text that is not UTF-8, numbers of images and
            captions that do not fit, or an id without an image file (with
            config.data.on_bad_image = 'skip', it may be missing).
    """
    root = root_path(config.data.root)
    if isinstance(root, Path) and not root.is_dir():
        raise InputError(f"{root}: no such data root (config.data.root)")
    splits = {name: _read_lists(root, name) for name in names}
    if config.data.equal_captions:
        counts = {name: split.captions_per_image for name, split in splits.items()}
        for name in (config.data.train_split, config.data.dev_split, config.eval.split):
            if name not in counts:
                with contextlib.suppress(InputError):  # not there, or not read here
                    counts[name] = _read_lists(root, name).captions_per_image
        check_equal_captions(counts, f"{root / 'precomp'}")
    form = data_format or config.data.format
    return [_open_split(config, form, splits[name]) for name in names]


def check_equal_captions(counts: Mapping[str, int], where: str) -> None:
    """Raises InputError unless all splits have the same number of captions per image.

    counts: of each split. where: they were read; the message begins with it.
    """
    if len(set(counts.values())) <= 1:
        return
    found = ", ".join(f"{name} has {count}" for name, count in counts.items())
    raise InputError(
        f"{where}: the splits differ in their captions per image ({found}): is a list "
        "cut off? If it is meant, set config.data.equal_captions to False"
    )


def _open_split(config: Config, form: str, split: Split) -> Split:
    root, name, per_image = split.root, split.name, split.captions_per_image
    image_ids, captions = split.image_ids, split.captions
    limit = config.data.dev_captions if name == config.data.dev_split else None
    if limit is not None and len(captions) > limit:
        if limit < per_image:
            raise InputError(
                f"config.data.dev_captions: {limit} is less than the {per_image} "
                f"captions of an image in split {name!r}"
            )
        image_ids = image_ids[: limit // per_image]
        captions = captions[: limit // per_image * per_image]
        logging.info(
            "split %r: the first %d of %d captions (config.data.dev_captions)",
            name,
            len(captions),
            len(split.captions),
        )
    images: list[Path] | RecordImages | None
    regions: NpyRegions | RecordRegions | None = None
    if form != "folder":
        images, regions = open_records(config, root, name, len(image_ids))
    elif isinstance(root, Path):
        if takes_regions(config.image):
            path, listed = root / "precomp" / f"{name}_ims.npy", len(split.image_ids)
            regions = open_regions(path, image_ids, listed, per_image, config.image)
        images = _image_paths(config, root, name, image_ids)
    else:
        raise InputError(f"config.data.root: {root}: needs config.data.format 'tfds'")
    return Split(name, root, image_ids, captions, per_image, images, regions)


def _read_lists(root: AnyPath, split: str) -> Split:
    """The text files of a split, without its images."""
    ids_file, captions_file = (root / "precomp" / name for name in list_names(split))
    captions = read_list(captions_file)
    image_ids, repeats = _one_per_image(read_list(ids_file), ids_file)
    per_image, rest = divmod(len(captions), len(image_ids))
    if rest or per_image == 0 or repeats not in (1, per_image):
        raise InputError(
            f"{captions_file}: {len(captions)} captions do not divide by the "
            f"{len(image_ids)} images of {ids_file.name}"
            + (f", each listed {repeats} times" if repeats > 1 else "")
        )
    return Split(split, root, image_ids, captions, per_image)


def _image_paths(
    config: Config, root: Path, split: str, image_ids: list[str]
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


def read_list(path: AnyPath) -> list[str]:
    """The lines of one of a split's text files.

    Raises:
        InputError: no such file, an empty one, or a line that is not UTF-8.
    """
    lines = read_lines(path)
    if not lines:
        raise InputError(f"{path}: empty")
    return lines


def _one_per_image(lines: list[str], path: AnyPath) -> tuple[list[str], int]:
    """Collapses runs of an equal id: (ids, length of every run)."""
    runs = [(image_id, len(list(run))) for image_id, run in itertools.groupby(lines)]
    repeats, line, unequal = runs[0][1], 1, ""
    first_line: dict[str, int] = {}
    for image_id, count in runs:
        where = f"{path}, line {line}"
        if not image_id:
            raise InputError(f"{where}: no image id")
        if image_id in first_line:
            raise InputError(
                f"{where}: image id {image_id!r} is already on line "
                f"{first_line[image_id]}"
            )
        if count != repeats:
            unequal = unequal or (
                f"{where}: image id {image_id!r} is listed {count} times, the first "
                f"one {repeats} times"
            )
        first_line[image_id] = line
        line += count
    if unequal:
        raise InputError(unequal)
    return list(first_line), repeats


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

    Args:
        splits: split name → (image id, its captions) in order.
        mapping: image id → path below the image folder.
    """
    precomp = root / "precomp"
    precomp.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows = list(rows)
        ids = "".join(f"{image_id}\n" for image_id, _ in rows)
        # A caption is a line: line breaks and runs of spaces inside it become a space.
        captions = "".join(
            f"{' '.join(caption.split())}\n" for _, many in rows for caption in many
        )
        write_atomically(precomp / f"{name}_ids.txt", ids.encode())
        write_atomically(precomp / f"{name}_caps.txt", captions.encode())
    text = json.dumps(dict(mapping), indent=0, ensure_ascii=False)
    write_atomically(root / "id_mapping.json", f"{text}\n".encode())
