"""What a picture file is: which files are looked at, and what is read from them."""

import contextlib
import datetime
import fnmatch
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vse_jax.base.errors import InputError
from vse_jax.data.images import MAX_PIXELS, PictureBytes, opened, to_rgb

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif"),
        *(".tif", ".tiff", ".gif", ".heic", ".heif"),
    )
)
# No other decoder sees a file, whatever its name: Pillow's EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF")
_ORIGINAL, _DIGITISED, _CHANGED = 0x9003, 0x9004, 0x0132  # EXIF's dates
_MAKE, _MODEL, _EXIF_IFD = 0x010F, 0x0110, 0x8769


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what its file says of it.

    Attributes:
        pixels: RGB, upright.
        taken: local time of the camera, 'YYYY-MM-DDTHH:MM:SS'.
        camera: maker and model.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    taken: str | None
    camera: str | None

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


def walk(
    folder: Path,
    exclude: Sequence[str] = (),
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[Path]:
    """The picture files in and below `folder`, known by their suffixes, in order.

    Hidden files and folders are left out, and so is what a pattern of `exclude`
    (`*.gif`, `cache`, `2019/raw`) matches: its name, or its path relative to `folder`.
    Symbolic links are not followed: what they lead to lies in the folder, where it is
    found anyway, or outside, where nothing may be read.
    A folder that cannot be listed is left out, too, and its error given to `on_error`.
    """

    def left_out(name: str, inside: str) -> bool:
        return name.startswith(".") or any(
            fnmatch.fnmatchcase(text, pattern)
            for pattern in exclude
            for text in (name, inside + name)
        )

    for parent, folders, names in os.walk(folder, onerror=on_error):
        inside = os.path.relpath(parent, folder) + "/"
        inside = inside.removeprefix("./")
        folders[:] = sorted(name for name in folders if not left_out(name, inside))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                continue
            path = Path(parent, name)
            if not left_out(name, inside) and _is_file(path):
                yield path


def _is_file(path: Path) -> bool:
    """Whether it is a file and no link; one may vanish while a folder is read."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def read_picture(picture: Path | PictureBytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes a JPEG, PNG, WebP, AVIF, TIFF, GIF (first frame) or HEIC picture.

    Its pixels are those of data.images.load_image.

    Raises:
        InputError: no whole, readable picture, or one of more than `max_pixels`, which
            is then not decoded (names the file).
    """
    with opened(picture, max_pixels, FORMATS) as image:
        taken, camera = _notes(image)
        return Picture(to_rgb(image), taken, camera)


def _notes(image: Image.Image) -> tuple[str | None, str | None]:
    """(taken, camera) from EXIF; what is damaged or not there is None."""
    if image.format == "PNG" and "exif" not in image.info:
        return None, None  # Pillow would decode the picture to look behind its pixels
    with contextlib.suppress(Exception):  # notes may be damaged in any way
        exif = image.getexif()
        details = exif.get_ifd(_EXIF_IFD)
        dates = (details.get(_ORIGINAL), details.get(_DIGITISED), exif.get(_CHANGED))
        taken = next(filter(None, map(_date, dates)), None)
        return taken, _camera(exif.get(_MAKE), exif.get(_MODEL))
    return None, None


def _date(value: object) -> str | None:
    try:
        text = str(value).strip("\0 ")
        return datetime.datetime.strptime(text, "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _camera(make: object, model: object) -> str | None:
    """'NIKON', 'NIKON D50' → 'NIKON D50'; 'Apple', 'iPhone 12' → 'Apple iPhone 12'."""
    maker, name = (
        " ".join("".join(c for c in str(x or "") if c.isprintable()).split())[:80]
        for x in (make, model)
    )
    first = maker.split(" ")[0].lower()
    whole = name if first and name.lower().startswith(first) else f"{maker} {name}"
    return whole.strip() or None


def thumbnail(pixels: UInt8[np.ndarray, "height width 3"], size: int) -> bytes:
    """WebP of the picture, made smaller where a side is longer than `size`."""
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=80, method=2)
    return content.getvalue()


def check_folder(folder: Path) -> Path:
    """The absolute path of a folder of pictures.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    return folder.resolve()
