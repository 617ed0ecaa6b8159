"""Pictures whose file says how they have to be turned."""

import io

import numpy as np
import pillow_heif
from PIL import ExifTags, Image
from PIL.Image import Transpose

# Upright: another color in each corner.
CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:] = (220, 30, 30), (30, 200, 40)
CORNERS[32:, :48], CORNERS[32:, 48:] = (40, 60, 220), (230, 220, 40)

# Formats of Pillow's that tell an orientation.
TURNABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "TIFF packed", "AVIF", "HEIC")
_STORED = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def turned(kind: str, orientation: int, stored: int | None = None) -> bytes:
    """A file of CORNERS, stored so that `orientation` turns it upright.

    stored: what the file says instead.
    """
    image = Image.fromarray(CORNERS)
    if orientation > 1:
        image = image.transpose(_STORED[orientation])
    tag = ExifTags.Base.Orientation
    exif = Image.Exif()
    exif[tag] = orientation if stored is None else stored
    content = io.BytesIO()
    if kind == "HEIC":
        pillow_heif.register_heif_opener()
        image.save(content, "HEIF", exif=exif.tobytes(), quality=-1)
    elif kind.startswith("TIFF"):
        packed = "tiff_lzw" if kind == "TIFF packed" else None
        image.save(content, "TIFF", tiffinfo={tag: exif[tag]}, compression=packed)
    else:
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
        image.save(content, kind, exif=exif, **options)
    return content.getvalue()
