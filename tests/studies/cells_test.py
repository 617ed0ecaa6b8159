"""The command that writes a CNN's cells as region features, on a few images."""

import cv2
import numpy as np
import pytest

from configs import openmoji_cells
from studies import cells
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.data import dataset

SPLITS = {"train": ["a", "b", "c"], "dev": ["d"], "test": ["e"]}


def config_of(root, size):
    """A config over a new root with noise images of `size` px."""
    rng = np.random.default_rng(0)
    names = [name for some in SPLITS.values() for name in some]
    (root / "images").mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{name}.png"), pixels)
    splits = {
        split: [(name, [f"caption of {name}"]) for name in some]
        for split, some in SPLITS.items()
    }
    dataset.write_root(root, splits, {name: f"{name}.png" for name in names})
    config = draft(openmoji_cells.get_config())
    config.data.root = str(root)
    return config


def test_a_row_holds_the_cells_of_its_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_BATCH", 2)
    config = config_of(tmp_path / "root", cells.SIZE)
    files = cells.write_cells(config)
    # As training reads them: by the ordinary way of region features.
    split = dataset.read_split(config, "train")
    assert split.regions is not None
    assert split.regions.shape == (3, 49, 1280)
    third = cv2.imread(str(tmp_path / "root" / "images" / "c.png"))[..., ::-1]
    (wanted,) = cells.cells(cells.load_network(), third[None].copy())
    np.testing.assert_allclose(split.regions[2], wanted, atol=1e-5)
    assert np.abs(split.regions[2] - split.regions[1]).max() > 1e-2
    before = [path.stat().st_mtime_ns for path in files]
    assert cells.write_cells(config) == files
    assert [path.stat().st_mtime_ns for path in files] == before


def test_pictures_of_another_size_are_refused(tmp_path):
    config = config_of(tmp_path / "root", 100)
    with pytest.raises(InputError, match=r"a\.png: 100 × 100 pixels; prepare .*=224"):
        cells.write_cells(config)
    assert not list((tmp_path / "root" / "precomp").glob("*ims.npy*"))


def test_the_network_is_the_published_one():
    """As another implementation of it, in JAX, had it: the largest of a middle cell."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    images = np.kron(pixels, np.ones((1, 8, 8, 1), np.uint8))
    found = cells.cells(cells.load_network(), images)
    assert found.shape == (2, cells.GRID**2, cells.CHANNELS)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), [0.073684, 0.072466], atol=1e-5)
    expected = [5.0948753, 4.2666693, 3.7777197, 3.4375029, 3.273725]
    np.testing.assert_allclose(
        found[1, 24, [455, 626, 226, 468, 434]], expected, atol=1e-4
    )
