"""Images: decoding, training augmentation, resizing and normalisation."""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    TiffTags,
    UnidentifiedImageError,
)

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.extras import require_extra

_DETECTOR_BGR_MEAN = np.array([102.9801, 115.9465, 122.7717])
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
_IMAGENET_STD = np.array([0.229, 0.224, 0.225])
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_JPEG_END = b"\xff\xd9"  # the marker EOI
_AT_ONCE = 2**22  # pixels of an image that is converted as a whole
# Formats whose white is the largest number that the bits of deep gray hold. None: an
# image of Pillow's that is no file's.
_WHITE_IS_ALL_BITS = (None, "PNG", "ICO", "TIFF", "PPM", "JPEG2000", "HEIF")
# EXIF's orientation → how OpenCV flips it upright; from 5 on, what is transposed first.
_FLIPS = {1: None, 2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}

_FLOATS = 2**23  # numbers of an image that becomes float32 as a whole
MAX_PIXELS = 200_000_000  # an image of more is refused before it is decoded


class ImageBytes(NamedTuple):
    """An image file's content that is in memory already."""

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
    source: Path | str | ImageBytes | Image.Image,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image of any mode to RGB, upright, transparency over white.

    Raises:
        InputError: no such file, or no whole, readable image (names the file).
    """
    with opened(source) as image:
        return to_rgb(image)


@contextlib.contextmanager
def opened(
    source: Path | str | ImageBytes | Image.Image,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet decoded.

    Args:
        source: a file, its content, or an image of Pillow's, which is left as it is.
        max_pixels: more than that are refused. So is, except in an `own_process`, what
            is larger than Pillow's MAX_IMAGE_PIXELS allows.
        formats: Pillow's names of those that may be read; None: all.

    Raises:
        InputError: no such file, more pixels, or (also when the block decodes it) no
            whole, readable image; names the file.
    """
    name = source.name if isinstance(source, ImageBytes) else str(source)
    file = io.BytesIO(source.data) if isinstance(source, ImageBytes) else source
    try:
        with (
            contextlib.nullcontext(file)
            if isinstance(file, Image.Image)  # which stays open
            else _open(file, formats, name)
        ) as image:
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
        raise InputError(f"{name}: no such image") from None
    except Exception as error:  # broken files make Pillow's decoders raise many types
        if refused := refusal(error):  # which says nothing of the image
            raise InputError(f"{name}: {refused.strerror}") from None
        reason = str(error).replace(repr(name), "it").replace(repr(file), "it")
        reason = " ".join(reason.split())
        raise InputError(f"{name}: not a readable image ({reason})") from None


def _open(
    source: Path | str | io.BytesIO, formats: tuple[str, ...] | None, name: str
) -> Image.Image:
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError:
        if isinstance(source, io.BytesIO):
            head = source.getvalue()[:12]
        else:
            with open(source, "rb") as file:
                head = file.read(12)
        if head[4:8] != b"ftyp" or head[8:] not in _HEIF_BRANDS:
            raise
    require_extra(f"{name}: HEIC", "search", "pillow_heif")
    import pillow_heif  # noqa: PLC0415 (optional, and rarely needed)

    pillow_heif.register_heif_opener()
    return Image.open(source, formats=("HEIF",))


def to_rgb(image: Image.Image, factor: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an opened image: upright, transparency over white.

    `factor`: this many rows and columns become one, their mean; a side that they do not
    divide is rounded up.

    Raises:
        ValueError: its numbers have no defined white, as floats have none.
        Exception: what Pillow's decoders raise for broken files.
    """
    pixels = _plain_jpeg(image) if factor == 1 else None
    if pixels is None:
        convert = _conversion(image)  # a decoded image has forgotten its bits
        _forget_damaged_notes(image)
        image.load()
        width, height = image.size
        if factor == 1 and width * height <= _AT_ONCE:
            pixels = np.asarray(convert(image))
        else:
            pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
            rows = factor * max(1, _AT_ONCE // 4 // width // factor)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                band = convert(image.crop((0, top, width, bottom)))
                if factor > 1:
                    band = band.reduce(factor)
                pixels[top // factor : -(-bottom // factor)] = np.asarray(band)
    # Not before: of a PNG it may stand behind the pixels.
    turned = orientation(image)
    if turned >= 5:
        pixels = cv2.transpose(pixels)
    flip = _FLIPS[turned]
    return pixels if flip is None else cv2.flip(pixels, flip)


def _plain_jpeg(image: Image.Image) -> np.ndarray | None:
    """The same pixels by OpenCV, a fifth faster; None: Pillow has to see to the rest.

    Both decode with libjpeg-turbo. What is not in three colours or ends too early is
    left to Pillow, which refuses files that are cut off.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return None
    if image.format != "JPEG" or image.decoderconfig:  # MPO; to be decoded smaller
        return None
    content = _content(image)
    if content is None or not content.rstrip(b"\0").endswith(_JPEG_END):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    same_size = pixels is not None and pixels.shape[1::-1] == image.size
    return pixels if same_size else None


def _forget_damaged_notes(image: Image.Image) -> None:
    """Of a TIFF, whose notes Pillow reads with its pixels, and fails for the two."""
    if image.format != "TIFF":
        return
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]
    exif = image.getexif()
    for group in TiffTags.TAGS_V2_GROUPS:
        try:
            exif.get_ifd(group)
        except Exception:
            del exif[group]


def _content(image: Image.Image) -> bytes | None:
    """Of its file; None: there is none, or it is decoded, and perhaps drawn on."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or not image.fp:
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    return content


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 … 8: phone photographs store a rotation instead of rotated pixels.

    1 is upright, and so is what Pillow has turned already (TIFF, HEIC). What else the
    notes hold may be damaged without harm to the image.
    """
    with contextlib.suppress(Exception):
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in _FLIPS else 1
    return 1


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that makes RGB of a band of this image as Pillow decodes it.

    Raises:
        ValueError: white is not defined, or Pillow would read it wrongly.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    tile = getattr(image, "tile", None)
    raw = str(tile[0].args) if tile else ""  # how the file holds a pixel
    transparent = image.info.get("transparency")
    deep = image.mode.startswith("I")
    if (
        image.mode == "F"
        or not {1, 4}.issuperset(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
        or (image.mode == "I" and image.format != "PPM")
        or (deep and image.format not in _WHITE_IS_ALL_BITS)
    ):
        raise ValueError(
            "floats, signed or 32-bit numbers, for which no white is defined: save it "
            "with 8 or 16 bits"
        )
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    if bits > 8 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:
        raise ValueError("16-bit colors in separate planes: save it as pixels of RGB")
    if image.format == "JPEG2000" and not deep and (content := _content(image)):
        size = content.index(b"\xff\x4f\xff\x51")  # the markers SOC and SIZ
        bits_of_color = (content[size + 42] & 0x7F) + 1
        if bits_of_color != 8:
            raise ValueError(
                f"colors of {bits_of_color} bits, whose white Pillow misses: save it "
                "with 8"
            )
    if getattr(image, "lut", None):
        raise ValueError("IM with a table of grays, which Pillow does not apply")
    if transparent is not None and "RGB;16" in raw:
        raise ValueError("one transparent color of 16 bits: save it with alpha")

    if deep:
        shift = bits - 8 if tags else 8
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0

        def from_gray(band: Image.Image) -> Image.Image:
            values = np.asarray(band)
            gray = (values >> shift).astype(np.uint8)
            if inverted:
                gray = 255 - gray
            if transparent is not None:
                gray[values == transparent] = 255
            return Image.fromarray(gray).convert("RGB")

        return from_gray

    levels = {"L;2": 3, "L;4": 15}.get(raw)
    colormap = tags.get(TiffImagePlugin.COLORMAP) if image.mode in ("P", "PA") else None

    def over_white(band: Image.Image) -> Image.Image:
        if levels and transparent is not None:  # Pillow scales the pixels, but not this
            band = band.copy()
            band.info["transparency"] = transparent * 255 // levels
        # 8 bits where TIFF wants 16; viewers see that, too.
        if colormap and max(colormap) < 256:
            band = band.copy()
            band.putpalette(np.reshape(colormap, (3, -1)).T.astype(np.uint8).tobytes())
        if not band.has_transparency_data:
            return band if band.mode == "RGB" else band.convert("RGB")
        if band.mode == "La":
            band = band.convert("LA")
        band = band.convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        return Image.alpha_composite(white, band).convert("RGB")

    return over_white


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
    normalization: str,
    resample: str = "opencv",
) -> Float32[np.ndarray, "{size} {size} 3"]:
    """Resizes to size × size (aspect ratio not kept) and normalises.

    Args:
        image: RGB.
        size: of a side of the result.
        normalization: 'detector' gives BGR minus the Caffe means; 'imagenet' gives
            RGB / 255, standardised; 'siglip' gives RGB from −1 to 1.
        resample: 'opencv' is bilinear on float32, as in the original; 'bilinear' and
            'bicubic' are Pillow's, on whole numbers, as for SigLIP.
    """
    return preprocess_to(image, size, size, normalization, resample)


def preprocess_to(
    image: UInt8[np.ndarray, "height width 3"],
    rows: int,
    columns: int,
    normalization: str,
    resample: str,
) -> Float32[np.ndarray, "{rows} {columns} 3"]:
    """As `preprocess`, to any size."""
    image = np.ascontiguousarray(image)  # a mirrored crop is not, and OpenCV needs it
    resized: np.ndarray
    if resample == "opencv" and image.size > _FLOATS:
        resized = _resized_from_few(image, rows, columns)
        if normalization == "detector":
            resized = np.ascontiguousarray(resized[..., ::-1])
    else:
        if normalization == "detector":
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if resample == "opencv":
            resized = cv2.resize(
                image.astype(np.float32),
                (columns, rows),
                interpolation=cv2.INTER_LINEAR,
            )
        else:
            by = Image.Resampling[resample.upper()]
            small = Image.fromarray(image).resize((columns, rows), by)
            resized = np.array(small, np.float32)
    scale, shift = _of_row(normalization, columns)
    values = resized.reshape(rows, -1)
    values *= scale
    values += shift
    return resized


def patches_of_aspect(
    height: int, width: int, patch: int, most: int
) -> tuple[int, int]:
    """The patches in a column and in a row that an image of any aspect becomes.

    As many as fit into `most`: both sides are scaled alike, then rounded up to whole
    patches. The search for the scale is that of transformers' processor for SigLIP 2,
    to the same precision, as the scale's last digits may decide.
    """
    low, high = 1e-6, 100.0

    def at(scale: float) -> tuple[int, int]:
        rows, columns = (
            max(1, math.ceil(side * scale / patch)) for side in (height, width)
        )
        return rows, columns

    while high - low >= 1e-5:
        middle = (low + high) / 2
        if math.prod(at(middle)) <= most:
            low = middle
        else:
            high = middle
    return at(low)


def _resized_from_few(
    image: UInt8[np.ndarray, "height width 3"], rows: int, columns: int
) -> Float32[np.ndarray, "{rows} {columns} 3"]:
    """What cv2.resize makes of the image as float32, without a float32 image.

    Bilinear interpolation reads four pixels for each of the result's: they alone become
    floats. The numbers are those of OpenCV with fused multiply-add, and within
    float32's rounding elsewhere.
    """

    def neighbors(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pixel before, pixel behind, weight of the latter) of each of the result."""
        centers = (np.arange(size) + 0.5) * (count / size) - 0.5
        centers = centers.clip(0, count - 1)
        before = centers.astype(int)
        weights = (centers - before).astype(np.float32)
        return before, np.minimum(before + 1, count - 1), weights

    def between(first: np.ndarray, second: np.ndarray, weight: np.ndarray):
        mixed = first + (second - first) * weight.astype(np.float64)
        return mixed.astype(np.float32)

    left, right, across = neighbors(image.shape[1], columns)
    above, below, down = neighbors(image.shape[0], rows)
    top, bottom = (
        between(
            image[near[:, None], left].astype(np.float32),
            image[near[:, None], right].astype(np.float32),
            across[:, None],
        )
        for near in (above, below)
    )
    return between(top, bottom, down[:, None, None])


def scale_and_shift(normalization: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of each channel, float64 [3], in `preprocess`'s channel order."""
    if normalization == "detector":
        return np.ones(3), -_DETECTOR_BGR_MEAN
    if normalization == "siglip":
        return np.full(3, 2 / 255), -np.ones(3)
    return 1 / (255 * _IMAGENET_STD), -_IMAGENET_MEAN / _IMAGENET_STD


@functools.lru_cache(maxsize=64)
def _of_row(normalization: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`scale_and_shift` of a row of pixels, float32 [size · 3] each.

    NumPy broadcasts a whole row much faster than the three values of a pixel.
    """
    rows = np.tile(scale_and_shift(normalization), size).astype(np.float32)
    return rows[0], rows[1]
