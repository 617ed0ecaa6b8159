"""Detectors' region features as TSV, written as a data root's *_ims.npy.

The files of bottom-up attention (BUTD, Anderson et al., CVPR 2018) have a line an
image, with tabs between

    image_id, image_w, image_h, num_boxes, boxes, features

The last two are base64 of float32 [num_boxes, 4] and [num_boxes, features]. There are
36 boxes an image, or 10 to 100. They hold no captions: the lists of the data root are
there already, made from Karpathy's JSON for example.
"""

import base64
import binascii
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import logging
from jaxtyping import Float32

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_object, whole_file
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data.lines import Lines
from vse_jax.data.regions import lengths_file

_FIELDS = 6


def is_region_row(line: bytes) -> bool:
    """Whether a file's first line is one of such a TSV."""
    return _is_row(line.rstrip(b"\r\n").split(b"\t"))


def _is_row(cells: list[bytes]) -> bool:
    return len(cells) == _FIELDS and all(map(bytes.isdigit, cells[1:4]))


@dataclass
class _Array:
    """The features of a split while they are written."""

    file: BinaryIO
    start: int  # byte of the first row
    lengths: np.ndarray  # sets that are not written yet have 0


def prepare_regions(config: Config, files: Sequence[AnyPath]) -> None:
    """Writes precomp/<split>_ims.npy [images, max_regions, feature_dim] float32.

    Of each split of config.data.root whose images the files have. Sets of fewer than
    config.image.max_regions end in zeros; precomp/<split>_lengths.npy says how many
    regions each has, if not all have as many. A set at a time is in memory.

    Raises:
        InputError: no lists, a line that is no such row or ends early, more regions
            than max_regions, or a split of which only some images have features.
    """
    root = Path(config.data.root)
    ids = {
        path.name.removesuffix("_ids.txt"): list(dict.fromkeys(Lines.read(path)))
        for path in sorted((root / "precomp").glob("*_ids.txt"))
    }
    if not ids:
        raise InputError(
            f"{root / 'precomp'}: no lists of images; prepare captions first, since "
            f"{files[0]} holds features alone"
        )
    places: dict[str, list[tuple[str, int]]] = {}
    names = _feature_names(root)
    for split, image_ids in ids.items():
        for row, image_id in enumerate(image_ids):
            name = names.get(image_id, image_id)
            places.setdefault(name, []).append((split, row))

    shape = config.image.max_regions, config.image.feature_dim
    unknown = 0
    with contextlib.ExitStack() as whole:
        arrays: dict[str, _Array] = {}
        for where, image, features in _rows(files, shape[1]):
            if len(features) > shape[0]:
                raise InputError(
                    f"{where}: {len(features)} regions; config.image.max_regions is "
                    f"{shape[0]}"
                )
            unknown += image not in places
            for split, row in places.get(image, []):
                if split not in arrays:
                    path = root / "precomp" / f"{split}_ims.npy"
                    new = whole.enter_context(whole_file(path))
                    arrays[split] = _create(whole, new, (len(ids[split]), *shape))
                array = arrays[split]
                array.file.seek(array.start + row * 4 * shape[0] * shape[1])
                array.file.write(features.tobytes())
                array.lengths[row] = len(features)
        if not arrays:
            raise InputError(
                f"{files[0]}: of its {unknown:,} images none is in the lists of "
                f"{root / 'precomp'}"
            )
        for split, array in arrays.items():
            missing = np.flatnonzero(array.lengths == 0)
            if missing.size:
                raise InputError(
                    f"{files[0]}: no features for {missing.size:,} of the "
                    f"{len(ids[split]):,} images of {split!r}, such as "
                    f"{ids[split][missing[0]]!r}"
                )
        for split, array in arrays.items():
            path = lengths_file(root / "precomp" / f"{split}_ims.npy")
            if (array.lengths < shape[0]).any():
                with whole_file(path) as new, new.open("wb") as file:
                    np.save(file, array.lengths)
            else:
                path.unlink(missing_ok=True)
            array.file.close()
    for split in ids:
        what = f"{len(ids[split]):,} images" if split in arrays else "not in the files"
        print(f"{root / 'precomp'}: {split}: {what}")
    if unknown:
        logging.info("%d images of the files are in no list", unknown)


def _feature_names(root: Path) -> dict[str, str]:
    """{image id: what such files call the image}.

    It is the number that its file's name ends in: COCO's id in
    COCO_val2014_000000391895.jpg, Flickr's in 1000092795.jpg. Without a mapping to
    files the ids are compared themselves.
    """
    mapping_file = root / "id_mapping.json"
    names = {}
    for image_id, name in (
        read_object(mapping_file).items() if mapping_file.is_file() else ()
    ):
        if number := re.search(r"(\d+)$", Path(str(name)).stem):
            names[image_id] = str(int(number[1]))
    return names


def _create(
    whole: contextlib.ExitStack, path: Path, shape: tuple[int, int, int]
) -> _Array:
    """A .npy file of zeros, which take no space until they are written."""
    # Written by its file: of a map, all pages that were written would be in memory.
    array = np.lib.format.open_memmap(path, "w+", np.dtype("<f4"), shape)
    start = array.offset
    del array
    file = whole.enter_context(path.open("r+b"))
    return _Array(file, start, np.zeros(shape[0], np.int32))


def _rows(
    files: Sequence[AnyPath], dim: int
) -> Iterator[tuple[str, str, Float32[np.ndarray, "regions features"]]]:
    """(what errors call it, image id, features) of every line."""
    for path in files:
        with path.open("rb") as file:
            lines = progress(file, f"reading {path.name}", unit="images")
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                cells = line.rstrip(b"\r\n").split(b"\t")
                if not _is_row(cells):
                    raise InputError(
                        f"{where}: {len(cells)} cells are no row of region features "
                        "(image_id, image_w, image_h, num_boxes, boxes, features)"
                    )
                try:
                    image = cells[0].decode().strip()
                    content = base64.b64decode(cells[5], validate=True)
                except (binascii.Error, UnicodeDecodeError) as error:
                    raise InputError(f"{where}: not whole ({error})") from None
                count = int(cells[3])
                if count == 0 or len(content) != count * dim * 4:
                    raise InputError(
                        f"{where}: {len(content):,} bytes are not {count} regions of "
                        f"config.image.feature_dim = {dim} float32"
                    )
                features = np.frombuffer(content, "<f4").reshape(count, dim)
                yield where, str(int(image)) if image.isdigit() else image, features
