"""What is read of an image file: its pixels in bounded memory, its date, its camera."""

import contextlib
import datetime
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.ExifTags import IFD, Base

from vse_jax import MAX_PIXELS, ImageBytes, InputError, opened, orientation, to_rgb

# No other decoder sees a file, whatever its name: Pillow's EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF")
_WHOLE = 50_000_000  # pixels of an image that is decoded in its own size
_SIDE = 1024  # px, the shorter side of one that is decoded smaller
_AROUND = 2**25  # bytes that any image takes: bands, and what a model makes of it
# EXIF has '2019:05:01 12:30:00'. Programs write what ISO 8601 has, too, leave the end
# away, or blanks for what they do not know; fractions and time zones may follow.
_DATE = re.compile(
    r"[\s\0]*(\d{4})[-:/. ]?(\d{1,2})[-:/. ]?(\d{1,2})(?!\d)"
    r"(?:[T\s]*(\d{1,2})(?:[:.]?(\d{1,2})(?:[:.]?(\d{1,2}))?)?)?",
    re.ASCII,
)
_FIRST_PHOTOGRAPH = 1826  # a year before it is a placeholder
_XMP_DATE = re.compile(
    r"(?:exif:DateTimeOriginal|photoshop:DateCreated|xmp:CreateDate)(?:=\"|>)([^\"<]*)"
)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and what its file says of it."""

    # RGB, upright; of a large image, fewer than it has (`reading`).
    pixels: UInt8[np.ndarray, "rows columns 3"]
    width: int  # of the whole image, upright
    height: int
    taken: str | None  # local time of the camera, 'YYYY-MM-DDTHH:MM:SS'
    camera: str | None  # maker and model


def read_image(source: Path | ImageBytes, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """As `reading`; the memory of its pixels is no longer counted."""
    with reading(source, max_pixels) as found:
        return found


@contextlib.contextmanager
def reading(
    source: Path | ImageBytes, max_pixels: int = MAX_PIXELS
) -> Iterator[DecodedImage]:
    """Decodes a JPEG, PNG, WebP, AVIF, TIFF, GIF (first frame) or HEIC image.

    Its pixels are those of vse_jax.load_image, unless it has more than 50 million,
    or too many for the memory. Then 2 × 2, 4 × 4 or 8 × 8 of them become one: as many
    as leave the shorter side 1,024 px, which is at least twice what a model takes.

    All blocks together, with what decoding takes, have `memory_for(max_pixels)`. One
    waits until there is room.

    Raises:
        InputError: no whole, readable image, or one of more than `max_pixels` or that
            needs more memory, which is then not decoded (names the file).
    """
    limit = memory_for(max_pixels)
    with contextlib.ExitStack() as stack:
        with opened(source, max_pixels, FORMATS) as image:
            factor = 1
            width, height = image.size
            if width * height > _WHOLE or _bytes_to_decode(image, 1) > limit:
                while factor < 8 and min(width, height) >= 2 * factor * _SIDE:
                    factor *= 2
            bytes = _bytes_to_decode(image, factor)
            if bytes > limit:
                name = source.name if isinstance(source, ImageBytes) else source
                raise InputError(
                    f"{name}: to decode {width:,} × {height:,} pixels of this kind "
                    f"takes {bytes / 1e9:.1f} GB; config.search.max_pixels = "
                    f"{max_pixels:,} allows {limit / 1e9:.1f} GB"
                )
            stack.enter_context(_memory.taken(bytes, limit))
            if isinstance(image, JpegImagePlugin.JpegImageFile) and factor > 1:
                image.draft(None, (width // factor, height // factor))
                factor = 1
            pixels = to_rgb(image, factor)
            if orientation(image) >= 5:
                width, height = height, width
            found = DecodedImage(pixels, width, height, *_notes(image))
        del image, pixels
        yield found


def memory_for(max_pixels: int) -> int:
    """Bytes that images may take together while they are decoded: 5 a pixel of
    config.search.max_pixels, and 256 MB at least."""
    return max(5 * max_pixels, 2**28)


def _bytes_to_decode(image: Image.Image, factor: int) -> int:
    """What an opened image needs of memory at most, by its header.

    That is Pillow's own pixels, what the format's decoder keeps beside them (as
    measured), and the RGB of the result: twice, if it may have to be turned.
    """
    count = image.width * image.height
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)
    turned = image.format == "PNG" or orientation(image) > 1  # a PNG's is not known yet
    result = 3 * (1 + turned)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # All coefficients of a progressive one, or of one whose colors come in turn,
        # are in memory: 2 bytes for each sample.
        most = max(h * v for _, h, v, _ in image.layer)
        samples = sum(h * v for _, h, v, _ in image.layer) / most
        decoder = 2 * samples * (not _is_one_scan(image))
        needed = decoder + (stored + result) / factor**2
    else:
        decoder = {"WEBP": 13, "AVIF": 10, "HEIF": 10, "GIF": 1}.get(
            image.format or "", 0
        )
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # a strip, as it is packed
            tags = image.tag_v2
            bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
            samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
            rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height)
            decoder = max(4, bits * samples / 8) * min(1, rows / image.height)
            decoder += stored * turned
        needed = stored + decoder + result / factor**2
    return int(count * needed) + _AROUND


def _is_one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the first scan of an opened JPEG has all its colors, and all their bits.

    Pillow has read the file to the end of this scan's header.
    """
    if image.info.get("progressive") or image.fp is None:
        return False
    end, length = image.fp.tell(), 6 + 2 * image.layers
    image.fp.seek(max(0, end - length))
    return image.fp.read(length)[:3] == bytes((0, length, image.layers))


class Memory:
    """Bytes that threads share; each takes some once, so none waits for ever."""

    def __init__(self) -> None:
        self._taken, self._given = 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, bytes: int, limit: int) -> Iterator[None]:
        """Has `bytes` of `limit` in the block, as soon as the others leave so much."""
        with self._given:
            self._given.wait_for(lambda: self._taken + bytes <= limit)
            self._taken += bytes
        try:
            yield
        finally:
            with self._given:
                self._taken -= bytes
                self._given.notify_all()


_memory = Memory()


def _notes(image: Image.Image) -> tuple[str | None, str | None]:
    """(taken, camera) from EXIF, then XMP; what is damaged or not there is None."""
    dates: list[object] = []
    camera = None
    with contextlib.suppress(Exception):  # notes may be damaged in any way
        exif = image.getexif()
        camera = _camera(exif.get(Base.Make), exif.get(Base.Model))
        dates.append(exif.get(Base.DateTime))
        details = exif.get_ifd(IFD.Exif)
        dates[:0] = map(details.get, (Base.DateTimeOriginal, Base.DateTimeDigitized))
    with contextlib.suppress(Exception):
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
        text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp
        dates += _XMP_DATE.findall(text)
    return next(filter(None, map(_date, dates)), None), camera


def _date(value: object) -> str | None:
    """'YYYY-MM-DDTHH:MM:SS'; a time that no clock shows is the nearest of its day."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    if (found := _DATE.match(text)) is None:
        return None
    year, month, day, *clock = (int(number or 0) for number in found.groups())
    hour, minute, second = (23, 59, 59) if clock[0] > 23 else clock
    try:
        taken = datetime.datetime(
            year, month, day, hour, min(minute, 59), min(second, 59)
        )
    except ValueError:
        return None
    return taken.isoformat() if year >= _FIRST_PHOTOGRAPH else None


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
    """WebP of the image, made smaller where a side is longer than `size`."""
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=80, method=2)
    return content.getvalue()
