"""Pictures: decoding, training augmentation, resizing and normalisation."""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vse_jax.base.errors import InputError

_DETECTOR_BGR_MEAN = np.array([102.9801, 115.9465, 122.7717])
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
_IMAGENET_STD = np.array([0.229, 0.224, 0.225])
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_JPEG_END = b"\xff\xd9"  # the marker EOI

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# A picture of more pixels is refused before it is decoded.
MAX_PIXELS = 200_000_000


class PictureBytes(NamedTuple):
    """A picture file's content that is in memory already."""

    name: str  # what errors call it
    data: bytes


def own_process(*_: int) -> None:
    """Sets Pillow and OpenCV up for a process that runs our programs, not somebody's.

    Pillow's own limit of pixels can neither be set by call nor be silent; `opened` has
    one. The data workers are the parallelism: a second pool inside OpenCV would only
    fight them and XLA for the same cores. Importing the package changes neither.
    """
    Image.MAX_IMAGE_PIXELS = None
    cv2.setNumThreads(0)


def load_image(
    picture: Path | str | PictureBytes | Image.Image,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a picture of any mode to RGB, upright, transparency over white.

    Raises:
        InputError: no such file, or no whole, readable picture (names the file).
    """
    with opened(picture) as image:
        return to_rgb(image)


@contextlib.contextmanager
def opened(
    picture: Path | str | PictureBytes | Image.Image,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Iterator[Image.Image]:
    """The picture with its header read and its pixels not yet decoded.

    Args:
        picture: a file, its content, or a picture of Pillow's (a copy is given).
        max_pixels: more than that are refused. So is, except in an `own_process`, what
            is larger than Pillow's MAX_IMAGE_PIXELS allows.
        formats: Pillow's names of those that may be read; None: all.

    Raises:
        InputError: no such file, more pixels, or (also when the block decodes it) no
            whole, readable picture; names the file.
    """
    name = picture.name if isinstance(picture, PictureBytes) else str(picture)
    source = io.BytesIO(picture.data) if isinstance(picture, PictureBytes) else picture
    try:
        with _open(source, formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{name}: {width:,} × {height:,} pixels are more than the "
                    f"{max_pixels:,} that are allowed"
                )
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such picture") from None
    except Exception as error:  # broken files make Pillow's decoders raise many types
        reason = str(error).replace(repr(name), "it").replace(repr(source), "it")
        reason = " ".join(reason.split())
        raise InputError(f"{name}: not a readable picture ({reason})") from None


def _open(
    source: Path | str | io.BytesIO | Image.Image, formats: tuple[str, ...] | None
) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError:
        if not _is_heif(source):
            raise
    try:
        import pillow_heif  # noqa: PLC0415 (optional, and rarely needed)
    except ImportError:
        raise ValueError(
            "HEIC needs pillow-heif: pip install -r requirements-search.txt"
        ) from None
    pillow_heif.register_heif_opener()
    return Image.open(source, formats=("HEIF",))


def _is_heif(source: Path | str | io.BytesIO) -> bool:
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:12]
    else:
        with open(source, "rb") as file:
            head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an opened picture: upright, transparency over white."""
    pixels = _plain_jpeg(image)
    return np.asarray(_to_rgb(image)) if pixels is None else pixels


def _plain_jpeg(image: Image.Image) -> np.ndarray | None:
    """The same pixels by OpenCV, a fifth faster; None: Pillow has to see to the rest.

    Both decode with libjpeg-turbo. What is to be turned upright, is not in three
    colours or ends too early is left to Pillow, which refuses files that are cut off.
    """
    file = getattr(image, "fp", None)  # None: no file behind it, or decoded already
    if image.format != "JPEG" or image.mode != "RGB" or file is None:
        return None
    with contextlib.suppress(Exception):  # damaged notes
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
    file.seek(0)
    content = file.read()
    if not content.rstrip(b"\0").endswith(_JPEG_END):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Phone photographs store a rotation instead of rotated pixels. What else their
    # notes hold may be damaged without harm to the picture.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I;16"):  # convert() would clip instead of scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def augment(
    image: UInt8[np.ndarray, "height width 3"],
    rng: np.random.Generator,
    crop_min: float,
    flip: float,
) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
    """Training crop and mirror: a view of `image`.

    One ratio r ~ U(crop_min, 1) gives both sides of the crop, int(r · side), at a
    uniform place; mirrored with probability `flip`.
    """
    height, width = image.shape[:2]
    ratio = rng.uniform(crop_min, 1.0)
    crop_height, crop_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    top = rng.integers(max(1, height - crop_height))
    left = rng.integers(max(1, width - crop_width))
    image = image[top : top + crop_height, left : left + crop_width]
    return image[:, ::-1] if rng.random() < flip else image


def preprocess(
    image: UInt8[np.ndarray, "height width 3"],
    size: int,
    pixels: str,
    resample: str = "plain",
) -> Float32[np.ndarray, "{size} {size} 3"]:
    """Resizes to size × size (aspect ratio not kept) and normalises.

    `pixels`: 'detector' gives BGR minus the Caffe means; 'imagenet' gives RGB / 255,
    standardised; 'siglip' gives RGB from −1 to 1. The resize, before normalisation, is
    bilinear on float32, as in the original ('plain'), or Pillow's on whole numbers
    ('bilinear', 'bicubic'), as for SigLIP.
    """
    image = np.ascontiguousarray(image)  # a mirrored crop is not, and OpenCV needs it
    if pixels == "detector":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    resized: np.ndarray
    if resample == "plain":
        resized = cv2.resize(
            image.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR
        )
    else:
        picture = Image.fromarray(image).resize((size, size), _FILTERS[resample])
        resized = np.array(picture, np.float32)
    scale, shift = _of_row(pixels, size)
    rows = resized.reshape(size, -1)
    rows *= scale
    rows += shift
    return resized


def scale_and_shift(pixels: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalisation of a pixel, float64 [3] each, in its order of `preprocess`."""
    if pixels == "detector":
        return np.ones(3), -_DETECTOR_BGR_MEAN
    if pixels == "siglip":
        return np.full(3, 2 / 255), -np.ones(3)
    return 1 / (255 * _IMAGENET_STD), -_IMAGENET_MEAN / _IMAGENET_STD


@functools.lru_cache(maxsize=4)
def _of_row(pixels: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`scale_and_shift` of one picture row, float32 [size · 3] each.

    NumPy broadcasts a whole row much faster than the three values of a pixel.
    """
    rows = np.tile(scale_and_shift(pixels), size).astype(np.float32)
    return rows[0], rows[1]
