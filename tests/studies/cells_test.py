"""The command that writes a CNN's cells as region features, on a few images."""

import cv2
import jax
import numpy as np
import pytest

from configs import openmoji_cells
from studies import cells
from studies import efficientnet_lite as lite
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
    monkeypatch.setattr(cells, "_BATCH", 2)  # the last batch of train is filled up
    config = config_of(tmp_path / "root", lite.SIZE)
    files = cells.write_cells(config)
    # As training reads them: by the ordinary way of region features.
    split = dataset.read_split(config, "train")
    assert split.regions is not None
    assert split.regions.shape == (3, 49, 1280)
    third = cv2.imread(str(tmp_path / "root" / "images" / "c.png"))[..., ::-1]
    network = lite.load_network(lite.weights_file())
    images = lite.normalised(np.stack([third, third]))
    wanted = jax.jit(lite.cells)(network, images)[0]
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
