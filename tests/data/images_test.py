"""Decoding, augmentation and preprocessing of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.golden_weights import FOLDER as GOLDEN
from vse_jax.base.errors import InputError
from vse_jax.data import images
from vse_jax.data.images import augment, load_image, preprocess

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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "LA", "P", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 0xFFFF, np.uint16))
    else:
        image = Image.new("RGB", (7, 5), "white").convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    image.save(path)

    out = load_image(path)

    assert out.shape == (5, 7, 3)
    assert out.dtype == np.uint8
    assert (out == 255).all()


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
        with pytest.raises(InputError, match=r"picture.jpg: not a readable picture"):
            load_image(path)


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


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new("RGB", (16, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn by 90° to see it upright
    image.save(tmp_path / "photo.jpg", exif=exif)

    assert load_image(tmp_path / "photo.jpg").shape == (16, 8, 3)


def test_damaged_notes_do_not_spoil_a_picture(tmp_path, monkeypatch):
    def damaged(image, in_place):
        raise TypeError("bad operand type")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", damaged)
    Image.new("RGB", (16, 8)).save(tmp_path / "photo.jpg")
    assert load_image(tmp_path / "photo.jpg").shape == (8, 16, 3)


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
