"""Tars of samples, as WebDataset and img2dataset write them, read as a stream.

A sample is the neighbouring members with the same name up to its first dot: an image,
and its caption as .txt (one) or as `caption` or `captions` of a .json. The shard is
part of the image's name, since names may repeat in the next one.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, unreadable
from vse_jax.base.progress import progress
from vse_jax.data.prepare.entry import Entry, named_split

_IMAGES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"),
    *("heic", "avif", "ppm", "jp2"),
)


def read_tars(paths: Sequence[AnyPath]) -> Iterator[Entry]:
    """The samples of the tars in turn, with the content of their images.

    What is left out is counted, named and logged: samples without an image or a
    caption, and the rest of a tar that is missing, damaged or ends early.

    Raises:
        InputError: not one sample is whole.
    """
    bad: list[str] = []
    found, left_out = 0, 0
    for path in progress(paths, "reading tars", unit="tars"):
        before = found
        try:
            for name, sample in _samples(path):
                entry = _entry(path, name, sample)
                if entry is None:
                    left_out += 1
                    logging.log_first_n(
                        logging.WARNING,
                        "%s, %s: no image with a caption; left out",
                        5,
                        path,
                        name,
                    )
                    continue
                found += 1
                yield entry
        except (InputError, tarfile.TarError, OSError, EOFError) as error:
            bad.append(str(path))
            reason = str(error).removeprefix(f"{path}: ")
            logging.warning("%s: %s; %d samples read", path, reason, found - before)
    if bad:
        logging.warning(
            "%d of %d tars are bad: %s", len(bad), len(paths), ", ".join(bad)
        )
    if left_out:
        logging.warning("%d samples without an image or a caption", left_out)
    if not found:
        raise InputError(f"{paths[0]}: no image with a caption in {len(paths)} tars")


def _samples(path: AnyPath) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, {ending: content}) of each sample of a tar.

    Raises:
        InputError: it cannot be opened, or ends without the zeros of a tar's end.
        TarError, OSError, EOFError: while it is read.
    """
    try:
        stream = path.open("rb")
    except Exception as error:
        raise unreadable(path, error) from None
    with stream:
        end = stream.seek(0, 2)
        stream.seek(max(end - tarfile.BLOCKSIZE, 0))
        is_whole = end > 0 and not any(stream.read())
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            members = (
                (member.name.rpartition("/"), tar.extractfile(member))
                for member in tar
                if member.isfile()
            )
            contents = (
                (folder + slash + base.partition(".")[0], base.partition(".")[2], file)
                for (folder, slash, base), file in members
            )
            for name, sample in itertools.groupby(contents, lambda member: member[0]):
                yield (
                    name,
                    {
                        ending.casefold(): file.read()
                        for _, ending, file in sample
                        if file is not None
                    },
                )
    if not is_whole:
        raise InputError(f"{path}: ends early")


def _entry(path: AnyPath, name: str, sample: dict[str, bytes]) -> Entry | None:
    """A sample as an entry; None: it lacks an image or a caption."""
    ending = next((ending for ending in _IMAGES if ending in sample), None)
    try:
        captions = [sample["txt"].decode()] if "txt" in sample else []
        if not captions and "json" in sample:
            about = json.loads(sample["json"])
            captions = about.get("captions") or [about.get("caption")]
        captions = [caption for caption in captions if caption.strip()]
    except (ValueError, AttributeError, TypeError):  # no UTF-8, no JSON, no texts
        captions = []
    if ending is None or not captions:
        return None
    name = f"{path.stem}/{PurePosixPath(name)}"
    return Entry(
        where=f"{path}, {name}",
        image=f"{name}.{ending}",
        split=named_split(path.stem),
        captions=captions,
        image_id=name,
        content=sample[ending],
    )
