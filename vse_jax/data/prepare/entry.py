"""What every reader of a source yields: an image with captions."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from vse_jax.base.errors import InputError

SPLITS = ("train", "dev", "test")

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "dev": "dev",
    "test": "test",
    "testing": "test",
}


class Entry(NamedTuple):
    """An image and captions of it; a source may have several of an image.

    where: what errors call it, such as "FILE, line 7".
    image: path of its file, from the source's folder or config.data.images.
    split: '' if the source does not tell.
    image_id: '' if it is the path.
    content: of the image file, where the source holds it.
    """

    where: str
    image: str
    split: str
    captions: list[str]
    image_id: str = ""
    content: bytes | None = None


def named_split(name: str) -> str:
    """The split that the name of a file or folder begins with, as 'val-0001'; or ''."""
    found = re.match(r"[a-z]+", name.casefold())
    return _SPLIT_WORDS.get(found[0], "") if found else ""


def check_relative(name: str, where: str) -> str:
    """The path of an image below its folder, as a downloaded file names it.

    Raises:
        InputError: it is empty, absolute or leads out of the folder.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"{where}: {name!r} is no path below the images' folder")
    return str(path)
