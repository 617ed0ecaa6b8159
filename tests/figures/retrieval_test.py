from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image, ImageColor

from vse_jax.data.dataset import Split
from vse_jax.data.images import load_image
from vse_jax.data.lines import Lines
from vse_jax.figures.retrieval import (
    plot_retrieval,
)
from vse_jax.figures.style import GREEN


@pytest.fixture
def split(tmp_path) -> Split:
    """Twenty pictures of one grey level each, two captions a picture."""
    paths = [tmp_path / f"{k}.png" for k in range(20)]
    for k, path in enumerate(paths):
        Image.new("RGB", (40, 30), (10 * k, 10 * k, 10 * k)).save(path)
    captions = [f"grey number {k // 2}, sentence {k % 2}" for k in range(40)]
    ids = [str(k) for k in range(20)]
    return Split(
        "test",
        tmp_path,
        Lines.of(ids),
        Lines.of(captions),
        2 * np.arange(len(ids) + 1),
        paths,
    )


def green_frames(figure) -> int:
    """Number of thumbnails in a green frame."""
    (axes,) = figure.axes
    return sum(frame.get_edgecolor() == to_rgba(GREEN) for frame in axes.patches)


def test_every_right_picture_among_the_first_five_is_framed(split, tmp_path):
    images = np.eye(20, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    figure = plot_retrieval(tmp_path / "r.png", split, images, captions)
    assert green_frames(figure) == 12
    picture = load_image(tmp_path / "r.png")
    assert picture.shape[1] > 1200
    green = (picture == ImageColor.getrgb(GREEN)).all(axis=2).sum()
    assert green > 12 * 4 * 100 * 5  # px: sides of more than 100, some 5 wide

    figure = plot_retrieval(tmp_path / "r.png", split, images, -captions)
    assert green_frames(figure) == 0


def test_ties_are_drawn_as_they_count(split, tmp_path):
    collapsed = np.ones((20, 3), np.float32), np.ones((40, 3), np.float32)
    figure = plot_retrieval(tmp_path / "r.png", split, *collapsed)
    assert green_frames(figure) == 0


def test_a_data_set_without_images_and_one_with_a_broken_file(split, tmp_path):
    images = np.eye(20, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    path = tmp_path / "r.png"
    ids = plot_retrieval(path, replace(split, images=None), images, captions)
    split.images[0].write_bytes(b"not a picture")
    broken = plot_retrieval(path, split, images, captions)
    assert green_frames(ids) == green_frames(broken) == 12
    assert not ids.axes[0].images
    assert broken.axes[0].images


def test_a_split_smaller_than_the_page(split, tmp_path):
    few = replace(
        split,
        image_ids=Lines.of(["0", "1"]),
        captions=Lines.of(["a", "", "b", "c"]),
        offsets=np.array([0, 1, 4]),
    )
    images = np.eye(2, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    figure = plot_retrieval(tmp_path / "r.png", few, images, captions)
    assert green_frames(figure) == 2


def test_captions_are_shown_as_they_are_written(split, tmp_path):
    """Dollars are no formula, and letters without a glyph no warning."""
    captions = Lines.of(["from $5 to $10: 两只狗", *split.captions[1:]])
    split = replace(split, captions=captions)
    images = np.eye(20, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    figure = plot_retrieval(tmp_path / "r.png", split, images, captions)
    assert split.captions[0] in [text.get_text() for text in figure.axes[0].texts]
