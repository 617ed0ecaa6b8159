"""Which files are pictures, and what is read from them."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from tests.helpers.turned_pictures import CORNERS, TURNABLE, turned
from vse_jax.base.errors import InputError
from vse_jax.data.images import ImageBytes, load_image
from vse_search.images import read_image, thumbnail

GREEN = (30, 200, 60)


def photo(path: Path, notes=None, details=None, size=(32, 16)) -> Path:
    """A picture file with EXIF: {tag: value} of it and of its inner part."""
    image = Image.new("RGB", size, GREEN)
    exif = Image.Exif()
    exif.update(notes or {})
    exif.get_ifd(0x8769).update(details or {})
    image.save(path, exif=exif)
    return path


def photo_notes(taken: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = taken
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tiff", "gif"])
def test_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (32, 16), GREEN).save(path)

    picture = read_image(path)

    assert (picture.width, picture.height) == (32, 16)
    assert abs(picture.pixels[8, 16].astype(int) - GREEN).max() <= 6
    np.testing.assert_array_equal(picture.pixels, load_image(path))


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_heic_is_read_whatever_its_name(tmp_path, name):
    image = Image.new("RGB", (64, 32), GREEN)
    content = io.BytesIO()
    pillow_heif.from_pillow(image).save(content, quality=90)
    (tmp_path / name).write_bytes(content.getvalue())

    picture = read_image(tmp_path / name)

    assert picture.pixels.shape == (32, 64, 3)
    assert abs(picture.pixels[8, 16].astype(int) - GREEN).max() <= 6
    np.testing.assert_array_equal(picture.pixels, load_image(tmp_path / name))


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    pillow_heif.from_pillow(Image.new("RGB", (64, 32))).save(tmp_path / "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        InputError,
        match=r"a\.heic: HEIC: the package pillow_heif is not .* make setup-search",
    ):
        read_image(tmp_path / "a.heic")


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_exif_tells_date_and_camera_and_what_is_up(tmp_path, suffix):
    notes = {0x0112: 6, 0x010F: "Canon\0", 0x0110: "Canon EOS 5D"}
    date = "2019:05:01 12:30:00"
    if suffix == "tiff":  # to which Pillow writes no inner part
        notes[0x0132] = date
    path = photo(tmp_path / f"a.{suffix}", notes, {0x9003: date})

    picture = read_image(path)

    assert picture.taken == "2019-05-01T12:30:00"
    assert picture.camera == "Canon EOS 5D"
    assert (picture.width, picture.height) == (16, 32)


def test_exif_of_heic(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "iPhone 12"
    exif[0x010F] = "Apple"
    exif[0x0132] = "2020:02:29 01:02:03"
    image = Image.new("RGB", (64, 32), GREEN)
    image.info["exif"] = exif.tobytes()
    pillow_heif.from_pillow(image).save(tmp_path / "a.heic")

    picture = read_image(tmp_path / "a.heic")

    assert picture.taken == "2020-02-29T01:02:03"
    assert picture.camera == "Apple iPhone 12"


@pytest.mark.parametrize(
    ("date", "taken"),
    [
        ("2019:05:01 12:30:15", "2019-05-01T12:30:15"),
        ("2019:05:01 12:30:15\0\0", "2019-05-01T12:30:15"),
        ("2019-05-01 12:30:15", "2019-05-01T12:30:15"),
        ("2019-05-01T12:30:15", "2019-05-01T12:30:15"),
        ("2019/05/01 12:30:15", "2019-05-01T12:30:15"),
        ("2019.05.01 12.30.15", "2019-05-01T12:30:15"),
        ("20190501T123015", "2019-05-01T12:30:15"),
        ("2019:5:1 9:03:05", "2019-05-01T09:03:05"),
        (" 2019:05:01  12:30:15 ", "2019-05-01T12:30:15"),
        ("2019:05:01 12:30:15.123", "2019-05-01T12:30:15"),
        ("2019:05:01 12:30:15+02:00", "2019-05-01T12:30:15"),
        ("2019-05-01T12:30:15Z", "2019-05-01T12:30:15"),
        ("2019:05:01 12:30:15 -0700", "2019-05-01T12:30:15"),
        ("2022:09:02 14:28:", "2022-09-02T14:28:00"),
        ("2019:05:01 12:30", "2019-05-01T12:30:00"),
        ("2019:05:01", "2019-05-01T00:00:00"),
        ("2019:05:01   :  :  ", "2019-05-01T00:00:00"),
        ("2019:05:01 24:00:00", "2019-05-01T23:59:59"),
        ("2019:05:01 12:30:60", "2019-05-01T12:30:59"),
        (b"2019:05:01 12:30:15", "2019-05-01T12:30:15"),
        ("1900:01:01 00:00:00", "1900-01-01T00:00:00"),
        ("0000:00:00 00:00:00", None),
        ("0001:01:01 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2019:05:   12:30:15", None),
        ("2019:02:30 12:00:00", None),
        ("2019:00:00 00:00:00", None),
        ("01/05/2019 12:30", None),
        ("1556713815", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates_in_all_usual_spellings(tmp_path, date, taken):
    path = photo(tmp_path / "a.jpg", details={0x9003: date})
    assert read_image(path).taken == taken
    if taken is None:  # another date of the file counts then
        notes = {0x0132: "2020:02:29 01:02:03"}
        path = photo(tmp_path / "b.jpg", notes, {0x9003: date})
        assert read_image(path).taken == "2020-02-29T01:02:03"


def test_exif_in_front_of_xmp_tells_the_date(tmp_path):
    xmp = b'<rdf:Description photoshop:DateCreated="2021-03-04T05:06:07.89+01:00"/>'
    image = Image.new("RGB", (8, 8))
    for suffix in ("jpg", "webp", "avif", "tiff"):
        tags = {"tiffinfo": {700: xmp}} if suffix == "tiff" else {"xmp": xmp}
        image.save(tmp_path / f"a.{suffix}", **tags)
        assert read_image(tmp_path / f"a.{suffix}").taken == "2021-03-04T05:06:07"
    path = tmp_path / "b.jpg"
    image.save(path, xmp=xmp, exif=photo_notes("2019:05:01 12:30:15"))
    assert read_image(path).taken == "2019-05-01T12:30:15"
    path = tmp_path / "c.png"
    text = PngImagePlugin.PngInfo()
    tag = "<exif:DateTimeOriginal>2021-03-04T05:06:07</exif:DateTimeOriginal>"
    text.add_itxt("XML:com.adobe.xmp", tag)
    image.save(path, pnginfo=text)
    assert read_image(path).taken == "2021-03-04T05:06:07"


@pytest.mark.parametrize("kind", TURNABLE)
def test_thumbnails_are_upright(kind):
    for orientation in range(1, 9):
        picture = read_image(ImageBytes("a", turned(kind, orientation)))
        with Image.open(io.BytesIO(thumbnail(picture.pixels, 48))) as small:
            found = np.asarray(small.convert("RGB")).astype(int)
        assert found.shape == (32, 48, 3)
        assert np.abs(found - CORNERS[::2, ::2])[4::8, 4::8].max() <= 12


def test_notes_behind_the_pixels_of_a_png_are_read():
    notes = photo_notes("2019:05:01 12:30:15")
    notes[0x0112] = 6
    content = io.BytesIO()
    Image.new("RGB", (32, 16)).save(content, "PNG")
    png = content.getvalue()
    chunk = notes.tobytes().removeprefix(b"Exif\0\0")
    crc = zlib.crc32(b"eXIf" + chunk)
    chunk = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", crc)

    picture = read_image(ImageBytes("a", png[:-12] + chunk + png[-12:]))

    assert (picture.width, picture.height) == (16, 32)
    assert picture.taken == "2019-05-01T12:30:15"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_do_not_spoil_a_picture(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")

    picture = read_image(path)

    assert picture.pixels.shape == (8, 8, 3)
    assert (picture.taken, picture.camera) == (None, None)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header():
    with pytest.raises(InputError) as error:
        read_image(ImageBytes("a.png", bomb(100_000, 100_000)))
    assert str(error.value) == (
        "a.png: 100,000 × 100,000 pixels are more than the 200,000,000 that are allowed"
    )


def test_the_limit_of_pixels_can_be_set(tmp_path):
    path = photo(tmp_path / "a.png", size=(20, 10))
    assert read_image(path, max_pixels=200).width == 20
    with pytest.raises(InputError, match="more than the 199"):
        read_image(path, max_pixels=199)


@pytest.mark.parametrize(
    "content", [b"", b"no picture\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF", b"BM" * 40]
)
def test_other_content_is_no_picture(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_image(path)
    reason = "cannot identify image file it"
    assert str(error.value) == f"{path}: not a readable image ({reason})"


def test_thumbnails_are_small_and_keep_their_shape():
    pixels = np.full((400, 200, 3), GREEN, np.uint8)

    image = Image.open(io.BytesIO(thumbnail(pixels, 100)))

    assert image.size == (50, 100)
    assert image.format == "WEBP"
