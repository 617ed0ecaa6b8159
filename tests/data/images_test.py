"""Decoding, augmentation and preprocessing of pictures."""

import errno
import io
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from tests.helpers.golden_weights import FOLDER as GOLDEN
from tests.helpers.raw_pictures import RAMP, RGB_RAMP, png, tiff
from tests.helpers.turned_pictures import CORNERS, TURNABLE, turned
from vse_jax.base.errors import InputError
from vse_jax.data.images import (
    ImageBytes,
    augment,
    load_image,
    preprocess,
    scale_and_shift,
)

RED = (255, 0, 0)


@pytest.mark.parametrize(
    "file", ["rgb_120x90.png", "gray_61x200.png", "rgb_300x300.png"]
)
@pytest.mark.parametrize("pixels", ["detector", "imagenet"])
@pytest.mark.parametrize("scale", [1, 2])
def test_preprocess_vs_reference(file, pixels, scale):
    golden = np.load(GOLDEN / "preprocess.npz")
    key = f"{file}.{pixels}.x{scale}"

    out = preprocess(load_image(GOLDEN / "images" / file), 256 * scale, pixels)

    assert out.dtype == np.float32
    assert out.shape == tuple(golden[f"{key}.shape"])
    np.testing.assert_allclose(out[::16, ::16], golden[f"{key}.grid16"], atol=1e-3)
    np.testing.assert_allclose(out.mean(), golden[f"{key}.mean"], atol=1e-3)
    np.testing.assert_allclose(out.std(), golden[f"{key}.std"], atol=1e-3)


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"),
    *("YCbCr", "LAB", "HSV", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"),
)


def ramp(mode: str) -> Image.Image:
    """The ramp from black to white in a mode of Pillow's."""
    gray = Image.fromarray(RAMP.astype(np.uint8))
    if mode == "1":
        return gray.point(lambda value: 255 * (value > 127), "1")
    if mode in ("P", "PA"):
        palette = Image.fromarray(RAMP.astype(np.uint8)[:, ::-1].copy())
        palette.putpalette([v for i in range(256) for v in [255 - i] * 3])
        return palette.convert(mode)
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32) / 255)
    if mode == "I":
        return Image.fromarray(RAMP.astype(np.int32) * 257)
    if mode.startswith("I;16"):
        kind = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, gray.size, (RAMP * 257).astype(kind).tobytes())
    if mode == "LAB":
        profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
        return ImageCms.profileToProfile(
            gray.convert("RGB"), *profiles, outputMode=mode
        )
    if mode in ("La", "RGBa"):
        return gray.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    return gray.convert("RGB").convert(mode)


def written_ramps() -> dict[str, tuple[str, bytes]]:
    """A file of the ramp for each mode that each of Pillow's formats writes.

    Without those that are no raster files (EPS, PDF), cannot be read again, have their
    own sizes (ICNS), or where Pillow clips deep numbers to 8 bits when it writes them.
    """
    Image.init()
    files = {}
    best = {"WEBP": {"lossless": True}} | {
        kind: {"quality": 100} for kind in ("JPEG", "MPO", "AVIF")
    }
    for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys() - {"EPS", "ICNS"}):
        for mode in MODES:
            content = io.BytesIO()
            with warnings.catch_warnings(action="ignore"):  # IM will be removed
                try:
                    ramp(mode).save(content, kind, **best.get(kind, {}))
                except (OSError, ValueError, KeyError, TypeError, NotImplementedError):
                    continue
                with Image.open(content) as image:
                    if image.mode[0] in "IF" or mode[0] not in "IF":
                        files[f"{kind} {mode}"] = image.mode, content.getvalue()
    return files


WRITTEN = written_ramps()


def check_ramp(picture, mode: str = "L", within: int = 1) -> None:
    """Compares with the ramp; a picture of 1 bit is black or white."""
    expected = 255 * (RGB_RAMP > 127) if mode == "1" else RGB_RAMP
    found = load_image(picture)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= within


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_ramp_is_right_in_every_mode_that_pillow_writes(name):
    """Or refused, where a file holds floats or 32-bit numbers."""
    mode, content = WRITTEN[name]
    picture = ImageBytes("a", content)
    kind, written = name.split()
    if (
        mode == "F"
        or (mode == "I" and kind != "PPM")
        or (mode[0] == "I" and kind == "IM")
    ):
        with pytest.raises(InputError, match=r"a: not a readable .* no white is defin"):
            load_image(picture)
    elif name in ("IM P", "IM PA"):
        with pytest.raises(InputError, match="a table of grays"):
            load_image(picture)
    else:  # Pillow's own colors of a GIF with alpha, and Lab's rounding
        within = {"GIF RGBA": 8, "TIFF LAB": 2, "WEBP LAB": 2, "AVIF LAB": 2}
        check_ramp(picture, written, within.get(name, 1))


def test_formats_and_modes_were_written():
    assert {"PNG I;16", "TIFF I;16B", "PPM I", "TIFF F", "JPEG CMYK"} < WRITTEN.keys()
    assert len(WRITTEN) > 100


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_pillows_is_right_in_every_mode(mode):
    image = ramp(mode)
    before = image.copy()
    if mode in ("I", "F"):
        with pytest.raises(InputError, match="no white is defined"):
            load_image(image)
    else:
        check_ramp(image, mode, 2 if mode == "LAB" else 1)
    assert image == before


def test_a_picture_of_pillows_that_was_drawn_on_is_taken_as_it_is(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(content, "JPEG")
    with Image.open(content) as image:
        image.paste(RED, (0, 0, 8, 8))
        assert load_image(image)[4, 4].tolist() == list(RED)
        assert image.getpixel((4, 4)) == RED


def deep(bits: int) -> np.ndarray:
    """The ramp in numbers of so many bits."""
    return np.round(RAMP * (2**bits - 1) / 255).astype(int)


def packed12(values: np.ndarray) -> np.ndarray:
    """Two numbers of 12 bits in three bytes."""
    two = values.reshape(len(values), -1, 2)
    both = two[..., 0] << 12 | two[..., 1]
    return np.stack([both >> 16, both >> 8 & 255, both & 255], -1).astype(np.uint8)


def pnm(kind: str, values: np.ndarray, white: int) -> bytes:
    height, width = values.shape[:2]
    head = f"{kind} {width} {height} {white}\n".encode()
    if kind in ("P2", "P3"):
        return head + b" ".join(b"%d" % value for value in values.ravel())
    return head + values.astype(">u2" if white > 255 else "u1").tobytes()


def with_alpha(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=-1)


def encoded(suffix: str, values: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, values, options)[1].tobytes()


def heic(mode: str, values: np.ndarray) -> bytes:
    """Of 10 bits."""
    content = io.BytesIO()
    data = values.astype(np.uint16).tobytes()
    image = pillow_heif.from_bytes(mode, (256, len(values)), data)
    image.save(content, quality=-1)
    return content.getvalue()


TALL = np.tile(RAMP[:1], (64, 1))  # AVIF, HEIC and JPEG 2000 do not like 8 rows
RGB16 = RGB_RAMP * 257
BIG = ">u2"  # endian
DEEP_FILES = {
    "PGM 10": pnm("P5", deep(10), 1023),
    "PGM 12": pnm("P5", deep(12), 4095),
    "PGM 16": pnm("P5", deep(16), 65535),
    "PGM 7": pnm("P5", deep(7), 127),
    "PGM plain 10": pnm("P2", deep(10), 1023),
    "PPM 10": pnm("P6", np.repeat(deep(10)[..., None], 3, axis=2), 1023),
    "PPM 16": pnm("P6", RGB16, 65535),
    "PPM plain 12": pnm("P3", np.repeat(deep(12)[..., None], 3, axis=2), 4095),
    "PNG gray 16": png((RAMP * 257).astype(BIG), 256, 16, 0),
    "PNG RGB 16": png(RGB16.astype(BIG), 256, 16, 2),
    "PNG RGBA 16": png(with_alpha(RGB16).astype(BIG), 256, 16, 6),
    "PNG gray alpha 16": png(with_alpha(RGB16[..., :1]).astype(BIG), 256, 16, 4),
    "TIFF 12": tiff([packed12(deep(12))], 12, 1),
    "TIFF 16": tiff([(RAMP * 257).astype("<u2")], 16, 1),
    "TIFF 16 big": tiff([(RAMP * 257).astype(BIG)], 16, 1, order=">"),
    "TIFF 16, 0 is white": tiff([65535 - (RAMP * 257).astype("<u2")], 16, 0),
    "TIFF 8, 0 is white": tiff([255 - RAMP.astype(np.uint8)], 8, 0),
    "TIFF RGB 16": tiff([RGB16.astype("<u2")], 16, 2, samples=3),
    "TIFF RGB 16 big": tiff([RGB16.astype(BIG)], 16, 2, samples=3, order=">"),
    "TIFF RGB planes": tiff([RAMP.astype("u1")] * 3, 8, 2, samples=3, tags={284: [2]}),
    "TIFF La": tiff(
        [np.stack([RAMP, RAMP * 0 + 255], -1).astype("u1")],
        *(8, 1),
        samples=2,
        tags={338: [1]},
    ),
    "TIFF palette": tiff(
        [255 - RAMP.astype("u1")], 8, 3, tags={320: [*range(65535, -1, -257)] * 3}
    ),
    "TIFF palette of 8 bits": tiff(
        [255 - RAMP.astype("u1")], 8, 3, tags={320: [*range(255, -1, -1)] * 3}
    ),
    "AVIF 10": encoded(
        ".avif",
        np.repeat(np.round(TALL * 1023 / 255).astype(np.uint16)[..., None], 3, axis=2),
        *(cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 100),
    ),
    "HEIC 10": heic("RGB;16", np.repeat(TALL[..., None] * 257, 3, axis=2)),
    "HEIC gray 10": heic("I;16", TALL * 257),
    "JPEG 2000 gray 16": encoded(".jp2", (TALL * 257).astype(np.uint16)),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_a_ramp_of_any_depth_is_what_a_viewer_shows(name):
    found = load_image(ImageBytes("a", DEEP_FILES[name]))
    assert np.abs(found.astype(int) - RGB_RAMP[:1]).max() <= 1


NO_WHITE = "no white is defined"
REFUSED_FILES = {
    "TIFF int32": (tiff([RAMP.astype("<i4")], 32, 1, tags={339: [2]}), NO_WHITE),
    "TIFF uint32": (tiff([RAMP.astype("<u4")], 32, 1), NO_WHITE),
    "TIFF int16": (tiff([RAMP.astype("<i2")], 16, 1, tags={339: [2]}), NO_WHITE),
    "TIFF int8": (tiff([RAMP.astype("i1")], 8, 1, tags={339: [2]}), NO_WHITE),
    "TIFF float": (tiff([RAMP.astype("<f4")], 32, 1, tags={339: [3]}), NO_WHITE),
    "TIFF RGB 16 planes": (
        tiff([RAMP.astype("<u2")] * 3, 16, 2, samples=3, tags={284: [2]}),
        "16-bit colors in separate planes",
    ),
    "PFM": (b"Pf 256 8 -1.0\n" + RAMP.astype("<f4").tobytes(), NO_WHITE),
    "PNG RGB 16 with one transparent": (
        png(RGB16.astype(BIG), 256, 16, 2, tRNS=b"\x12\x34" * 3),
        "one transparent color of 16 bits",
    ),
    "JPEG 2000 RGB 16": (
        encoded(".jp2", np.repeat(TALL[..., None] * 257, 3, 2).astype(np.uint16)),
        "colors of 16 bits",
    ),
    "FITS": (
        b"".join(
            line.ljust(80)
            for line in (
                *(b"SIMPLE  = T", b"BITPIX  = 16", b"NAXIS   = 2"),
                *(b"NAXIS1  = 256", b"NAXIS2  = 8", b"END"),
            )
        ).ljust(2880)
        + RAMP.astype(">i2").tobytes(),
        NO_WHITE,
    ),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_what_has_no_white_is_refused_in_one_line(name):
    content, reason = REFUSED_FILES[name]
    with pytest.raises(InputError, match=f"^a: not a readable image .*{reason}"):
        load_image(ImageBytes("a", content))


@pytest.mark.parametrize(
    ("bits", "rows", "transparent", "expected"),
    [
        (1, b"\x40", 0, [255, 255, 255, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x03\x5f", 3, [0, 255, 85, 255]),
        (8, b"\x03\x33\x05\x07", 3, [255, 51, 5, 7]),
        (16, b"\x12\x34\x12\x35\x80\0\0\0", 0x1234, [255, 18, 128, 0]),
    ],
)
def test_one_gray_value_may_be_transparent(bits, rows, transparent, expected):
    content = png(rows, 4, bits, 0, tRNS=transparent.to_bytes(2))
    assert load_image(ImageBytes("a", content))[0, :, 0].tolist() == expected


def test_half_transparent_gray_is_over_white():
    """Alone (LA) and multiplied with its alpha (La)."""
    half = np.full_like(RAMP, 128)
    for gray, kind in ((RAMP, 2), (RAMP // 2, 1)):
        strips = [np.stack([gray, half], -1).astype("u1")]
        content = tiff(strips, 8, 1, samples=2, tags={338: [kind]})
        found = load_image(ImageBytes("a", content))[..., 0]
        assert np.abs(found - (127 + RAMP * 128 / 255)).max() <= 2


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0, "quality": 30}, {"quality": 99}],
)
def test_a_jpeg_file_has_the_pixels_that_pillow_gives_it(tmp_path, options):
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    path = tmp_path / "picture.jpg"
    Image.fromarray(noise).resize((183, 161)).save(path, **options)
    np.testing.assert_array_equal(load_image(path), np.asarray(Image.open(path)))
    content = path.read_bytes()
    for cut in (content[: len(content) // 2], content[:-2]):
        path.write_bytes(cut)
        with pytest.raises(InputError, match=r"picture.jpg: not a readable image"):
            load_image(path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM])
def test_a_disk_that_fails_says_nothing_of_the_picture(tmp_path, monkeypatch, code):
    """Nor does memory: the file may be whole."""
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (8, 8)).save(path)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError) as error:
        load_image(path)
    assert str(error.value) == f"{path}: {os.strerror(code)}"


def test_sixteen_bit_gray_keeps_its_range(tmp_path):
    values = np.array([[0, 0x0100, 0x80FF, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / "gray.png")

    assert load_image(tmp_path / "gray.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.convert(mode).save(tmp_path / "sticker.png")

    out = load_image(tmp_path / "sticker.png")

    assert out[0].tolist() == [[255, 255, 255], list(RED)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNABLE)
def test_pictures_are_turned_upright(kind, orientation):
    found = load_image(ImageBytes("a", turned(kind, orientation)))
    assert found.shape == CORNERS.shape
    assert np.abs(found.astype(int) - CORNERS)[4::8, 4::8].max() <= 12


def test_only_the_turn_that_exif_knows_is_made():
    for orientation in (0, 9, 65535):
        found = load_image(ImageBytes("a", turned("PNG", 1, stored=orientation)))
        np.testing.assert_array_equal(found, CORNERS)


def test_damaged_notes_do_not_spoil_a_picture(tmp_path, monkeypatch):
    def damaged(image):
        raise TypeError("bad operand type")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    Image.new("RGB", (16, 8)).save(tmp_path / "photo.jpg")
    assert load_image(tmp_path / "photo.jpg").shape == (8, 16, 3)


@pytest.mark.parametrize(
    ("tag", "numbers"), [(700, [7]), (0x8825, [0xFFFF]), (0x8769, [3, 1])]
)
@pytest.mark.filterwarnings("ignore:.*EXIF data")
def test_damaged_notes_do_not_spoil_a_tiff(tag, numbers):
    """XMP that is no text; inner notes that stand nowhere."""
    content = tiff([RAMP.astype("u1")], 8, 1, tags={tag: numbers, 274: [3]})
    at = content.index(struct.pack("<HH", tag, 3))
    if tag != 700:  # a signed number: a place in front of the file
        content = content[: at + 2] + struct.pack("<H", 8) + content[at + 4 :]
    found = load_image(ImageBytes("a", content))
    np.testing.assert_array_equal(found, RGB_RAMP[::-1, ::-1])


def broken_files(folder: Path) -> dict[str, Path]:
    """Every kind of file that is no whole picture."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    files = {"missing.jpg": None, "empty.png": b"", "text.jpg": b"no picture\n"}
    for suffix in ("png", "jpg", "gif"):
        whole = folder / f"whole.{suffix}"
        Image.fromarray(noise).save(whole)
        data = whole.read_bytes()
        files[f"truncated.{suffix}"] = data[: len(data) // 2]
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


@pytest.mark.parametrize(
    "name",
    [
        "missing.jpg",
        "empty.png",
        "text.jpg",
        "truncated.png",
        "truncated.jpg",
        "truncated.gif",
    ],
)
def test_broken_file_is_named_in_one_line(tmp_path, name):
    path = broken_files(tmp_path)[name]

    with pytest.raises(InputError) as error:
        load_image(path)

    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1
    assert "\n" not in message


@pytest.mark.parametrize(
    ("height", "width"),
    [(1999, 1500), (1024, 4096), (3, 500_000), (500_000, 3), (2401, 1201)],
)
@pytest.mark.parametrize("pixels", ["detector", "imagenet"])
def test_a_large_image_is_resized_as_a_small_one(height, width, pixels):
    """By the official procedure, of which a large one keeps less in memory."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[:, : width // 2] //= 2
    ordered = image[..., ::-1] if pixels == "detector" else image
    expected = cv2.resize(ordered.astype(np.float32), (224, 224))
    scale, shift = scale_and_shift(pixels)

    found = preprocess(image, 224, pixels)

    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected * scale + shift, rtol=0, atol=1e-4)


def test_one_pixel_is_a_picture(tmp_path):
    """It decodes, so it is resized like any other: a picture of one colour."""
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")

    image = load_image(tmp_path / "dot.png")
    cropped = augment(image, np.random.default_rng(0), crop_min=0.6, flip=0.5)
    out = preprocess(cropped, 4, "detector")

    expected = np.array([0, 0, 255]) - [102.9801, 115.9465, 122.7717]
    np.testing.assert_allclose(out, np.broadcast_to(expected, (4, 4, 3)), atol=1e-4)


class TestAugment:
    # Pixel (y, x) has the value (y, x, 0).
    IMAGE = np.stack([*np.mgrid[:100, :60], np.zeros((100, 60))], -1).astype(np.uint8)

    def test_crops(self):
        rng = np.random.default_rng(0)
        crops = [augment(self.IMAGE, rng, crop_min=0.6, flip=0.0) for _ in range(500)]

        heights, widths = np.array([crop.shape[:2] for crop in crops]).T
        assert 60 <= heights.min() <= 62
        assert 97 <= heights.max() <= 99
        # One ratio for both sides, each rounded down by itself.
        assert (abs(heights * 0.6 - widths) < 1).all()
        for crop in crops:
            top, left = crop[0, 0, :2]
            height, width = crop.shape[:2]
            whole = self.IMAGE[top : top + height, left : left + width]
            np.testing.assert_array_equal(crop, whole)
        # The place is uniform: the mean offset is half of what is left over.
        tops = np.array([crop[0, 0, 0] for crop in crops])
        np.testing.assert_allclose(tops.mean(), ((100 - heights) / 2).mean(), rtol=0.1)

    def test_mirrors(self):
        rng = np.random.default_rng(0)
        crops = [augment(self.IMAGE, rng, crop_min=1.0, flip=0.3) for _ in range(1000)]

        mirrored = [np.array_equal(crop, self.IMAGE[:, ::-1]) for crop in crops]
        straight = [np.array_equal(crop, self.IMAGE) for crop in crops]
        assert sum(mirrored) + sum(straight) == 1000
        assert 250 < sum(mirrored) < 350

    def test_mirrored_crop_can_be_resized(self):
        crop = augment(self.IMAGE, np.random.default_rng(0), crop_min=0.6, flip=1.0)
        np.testing.assert_allclose(
            preprocess(crop, 32, "imagenet"),
            preprocess(np.ascontiguousarray(crop[:, ::-1]), 32, "imagenet")[:, ::-1],
            atol=1e-4,
        )
