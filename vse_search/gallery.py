"""The pictures of an index as a browser gets them, and those that it sends."""

import contextlib
import functools
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from vse_jax import ImageBytes, InputError, opened, orientation
from vse_search.engine import Row
from vse_search.pictures import FORMATS, read_picture, reading, thumbnail
from vse_search.store import Store

THUMBNAIL = 320  # px, the longer side
_LARGE = 2048  # px, likewise, of a picture that is shown by itself
_THUMBNAILS = 2000  # kept in memory, about 10 KB each
# What browsers show, by Pillow's names.
_SHOWN = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
# Where a PNG's orientation may be.
_NOTES = re.compile(rb"eXIf|Raw profile type exif|tiff:Orientation")


class Refused(InputError):
    """Bad input with the HTTP status that says what kind."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Content(NamedTuple):
    """A picture on its way to a browser.

    tag: changes when the file does.
    data: None: the browser has it.
    """

    kind: str  # image/…
    tag: str
    data: bytes | None


class Gallery:
    """Reads pictures of an index by their ids, and no other file.

    Args:
        store: the index.
        max_pixels: of a picture; larger ones are not decoded.
    """

    def __init__(self, store: Store, max_pixels: int):
        self._store = store
        self._max_pixels = max_pixels
        self._thumbnail = functools.lru_cache(_THUMBNAILS)(
            lambda path, tag: self._thumbnail_of(path)
        )

    def row(self, id: int) -> Row:
        """What is known of a picture.

        Raises:
            Refused: 404, there is none.
        """
        row = self._store.picture(id)
        if row is None:
            raise Refused(404, f"{id}: no such picture")
        return row

    def pixels(self, id: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture, upright.

        Raises:
            Refused: 404, there is none, or it cannot be read (any more).
        """
        path = self._path(id)
        with _found(path):
            return read_picture(path, self._max_pixels).pixels

    def thumbnail(self, id: int, known: str | None) -> Content:
        """A picture as WebP of at most `THUMBNAIL` px.

        Args:
            id: of the picture.
            known: the tag of what the browser has.

        Raises:
            Refused: as `pixels`.
        """
        path = self._path(id)
        tag = _tag(path, "small")
        data = None if tag == known else self._thumbnail(path, tag)
        return Content("image/webp", tag, data)

    def picture(self, id: int, full: bool, known: str | None) -> Content:
        """A picture in a format that browsers show; at most `_LARGE` px unless `full`.

        Args and errors: as `thumbnail`.
        """
        path, row = self._path(id), self.row(id)
        large = max(row.width, row.height) > _LARGE
        kind = self._shown_as_it_is(path)
        tag = _tag(path, f"{'full' if full else 'large'} {kind}")
        if kind and (full or not large):
            return Content(kind, tag, None if tag == known else path.read_bytes())
        if tag == known:
            return Content("image/jpeg", tag, None)
        content = io.BytesIO()
        with _found(path), reading(path, self._max_pixels) as picture:
            image = Image.fromarray(picture.pixels)
            if not full:
                image.thumbnail((_LARGE, _LARGE), reducing_gap=2.0)
            image.save(content, "JPEG", quality=90)
        return Content("image/jpeg", tag, content.getvalue())

    def file(self, id: int) -> tuple[Path, str]:
        """Where a picture's file is, and its name as people see it.

        Raises:
            Refused: 404, there is none (any more).
        """
        return self._path(id), self.row(id).path.rpartition("/")[2]

    def folder_is_there(self) -> bool:
        """Whether the pictures' folder can be listed and holds something.

        The place where a drive was mounted is an empty folder afterwards.
        """
        try:
            with os.scandir(self._store.folder) as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def uploaded(self, data: bytes) -> UInt8[np.ndarray, "height width 3"]:
        """Decodes the content of a picture file that is not in the index.

        Raises:
            Refused: 413, too many pixels (nothing is decoded then); 415, no picture.
        """
        picture = ImageBytes("the upload", data)
        try:
            with opened(picture, sys.maxsize, FORMATS) as image:
                pixels = image.width * image.height
            if pixels <= self._max_pixels:
                return read_picture(picture, self._max_pixels).pixels
        except InputError as error:
            raise Refused(415, str(error)) from None
        raise Refused(413, f"{pixels:,} pixels; at most {self._max_pixels:,} are read")

    def _path(self, id: int) -> Path:
        """The file of a picture, without symbolic links, inside the index's folder."""
        folder = self._store.folder.resolve()
        path = (folder / self.row(id).file).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise Refused(404, f"{id}: its file is not there any more")
        return path

    def _thumbnail_of(self, path: Path) -> bytes:
        with _found(path), reading(path, self._max_pixels) as picture:
            return thumbnail(picture.pixels, THUMBNAIL)

    def _shown_as_it_is(self, path: Path) -> str | None:
        """The type of a file that browsers show, and show upright."""
        with _found(path), opened(path, self._max_pixels, FORMATS) as image:
            kind = _SHOWN.get(image.format or "")
            # Pillow would decode a PNG to see whether notes stand behind its pixels.
            if image.format == "PNG" and not _NOTES.search(path.read_bytes()):
                return kind
            if kind == "image/jpeg":  # browsers turn these, by EXIF alone
                exif = Image.Exif()
                exif.load(image.info.get("exif", b""))
                turned = exif.get(ExifTags.Base.Orientation, 1)
            else:
                turned = 1
            return kind if turned == orientation(image) else None


@contextlib.contextmanager
def _found(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        # Without the folder, which is nobody's business.
        reason = str(error).removeprefix(f"{path}: ")
        raise Refused(404, f"{path.name}: {reason}") from None


def _tag(path: Path, form: str) -> str:
    status = path.stat()
    facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{form}"
    return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:32]
