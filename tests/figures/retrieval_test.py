from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from vse_jax.data.dataset import Split
from vse_jax.data.images import load_image
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
    return Split("test", tmp_path, ids, captions, 2, paths, None)


def green_frames(path) -> int:
    """Number of green frames in a retrieval picture, from their horizontal edges."""
    green = (load_image(path) == ImageColor.getrgb(GREEN)).all(axis=2)
    frame = 134  # px, a tile with its frame on both sides
    edges = np.lib.stride_tricks.sliding_window_view(green, frame, axis=1).all(axis=2)
    return int(edges.sum()) // 10  # an edge is 5 px thick; each frame has two


def test_every_right_picture_among_the_first_five_is_framed(split, tmp_path):
    images = np.eye(20, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    plot_retrieval(tmp_path / "r.png", split, images, captions)
    assert green_frames(tmp_path / "r.png") == 12
    assert load_image(tmp_path / "r.png").shape[1] > 1200

    plot_retrieval(tmp_path / "r.png", split, images, -captions)
    assert green_frames(tmp_path / "r.png") == 0


def test_ties_are_drawn_as_they_count(split, tmp_path):
    collapsed = np.ones((20, 3), np.float32), np.ones((40, 3), np.float32)
    plot_retrieval(tmp_path / "r.png", split, *collapsed)
    assert green_frames(tmp_path / "r.png") == 0


def test_a_data_set_without_pictures_and_one_with_a_broken_file(split, tmp_path):
    images = np.eye(20, dtype=np.float32)
    captions = np.repeat(images, 2, axis=0)
    plot_retrieval(tmp_path / "ids.png", replace(split, images=None), images, captions)
    split.images[0].write_bytes(b"not a picture")
    plot_retrieval(tmp_path / "broken.png", split, images, captions)
    assert green_frames(tmp_path / "ids.png") == green_frames(tmp_path / "broken.png")


def test_a_split_smaller_than_the_page(split, tmp_path):
    few = replace(split, image_ids=["0", "1"], captions=["a", "", "b", "c"])
    images = np.eye(2, dtype=np.float32)
    plot_retrieval(tmp_path / "r.png", few, images, np.repeat(images, 2, axis=0))
    assert green_frames(tmp_path / "r.png") == 2
