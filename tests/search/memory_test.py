"""Decoding takes as much memory as the setting allows, whatever a picture is."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vse_jax.base.errors import InputError
from vse_search.images import MAX_PIXELS, memory_for, read_image

pytestmark = pytest.mark.system

AROUND = 100_000_000  # bytes for the index, batches and threads


def large_png(path: Path, width: int, height: int, channels: int = 3) -> None:
    """A small file of a gradient, written without having it in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    color = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = (
        packer.compress(b"\0" + bytes([y * 255 // height]) * width * channels)
        for y in range(height)
    )
    data = b"".join(rows) + packer.flush()
    content = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def index(tmp_path: Path, folder: Path, max_pixels: int) -> dict:
    small = tmp_path / "small"
    small.mkdir()
    Image.new("RGB", (40, 30)).save(small / "a.jpg")
    script = (sys.executable, "-m", "tests.search.index_in_memory")
    folders = (str(small), str(folder))
    done = subprocess.run(
        [*script, str(tmp_path / "index"), str(max_pixels), *folders],
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_memory_is_bounded_by_the_setting(tmp_path):
    """Decoded as they are, these pictures take seven times as much."""
    folder = tmp_path / "large"
    folder.mkdir()
    for name in ("a", "b", "c"):
        large_png(folder / f"{name}.png", 6000, 6000 + ord(name))
    large_png(folder / "alpha.png", 6000, 5500, channels=4)
    image = Image.linear_gradient("L").resize((7000, 5000)).convert("RGB")
    image.save(folder / "baseline.jpg", quality=50)
    image.save(folder / "progressive.jpg", quality=50, progressive=True, subsampling=0)
    image.save(folder / "packed.tif", compression="tiff_lzw")
    image.save(folder / "a.webp", quality=1, method=0)
    del image

    found = index(tmp_path, folder, 40_000_000)

    assert found["bad"] == {
        "a.webp": "to decode 7,000 × 5,000 pixels of this kind takes 0.6 GB; "
        "config.search.max_pixels = 40,000,000 allows 0.3 GB"
    }
    assert found["grown"] < memory_for(40_000_000) + AROUND


@pytest.mark.slow
def test_any_folder_takes_less_than_one_and_a_half_gigabytes(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    for name in ("a", "b"):
        large_png(folder / f"{name}.png", 20_000, 10_000 - ord(name))
    large_png(folder / "c.png", 199_000, 1000)
    image = Image.linear_gradient("L").resize((20_000, 9_990)).convert("RGB")
    for name, options in (
        ("baseline", {}),
        ("progressive", {"progressive": True}),
        ("progressive444", {"progressive": True, "subsampling": 0}),
    ):
        image.save(folder / f"{name}.jpg", quality=50, **options)
    image.save(folder / "strips.tif", compression="tiff_lzw")
    del image

    found = index(tmp_path, folder, MAX_PIXELS)

    assert found["bad"].keys() == {"c.png", "progressive444.jpg"}
    assert found["grown"] < 1_500_000_000


def test_a_large_picture_is_decoded_smaller(tmp_path, monkeypatch):
    """Its size is told as it is, and what it shows is the same."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    large_png(tmp_path / "a.png", 8000, 7000)
    with Image.open(tmp_path / "a.png") as image:
        image.convert("RGB").save(tmp_path / "a.jpg", quality=95)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=exif)
    for name in ("a.png", "a.jpg", "b.jpg"):
        picture = read_image(tmp_path / name)
        assert (picture.width, picture.height) == (8000, 7000)
        assert picture.pixels.shape == (1750, 2000, 3)
        for row in (0, 500, 1749):
            gray = (row + 0.5) * 255 / 1750
            assert abs(picture.pixels[row].astype(float) - gray).max() <= 2.5


def test_what_needs_more_than_the_setting_allows_is_refused_by_its_header(tmp_path):
    large_png(tmp_path / "a.png", 70_000, 900)
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "a.png", 64_000_000)
    assert str(error.value) == (
        f"{tmp_path / 'a.png'}: to decode 70,000 × 900 pixels of this kind takes "
        "0.7 GB; config.search.max_pixels = 64,000,000 allows 0.3 GB"
    )
