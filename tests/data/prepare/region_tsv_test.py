"""Region features as detectors' TSV files, beside lists that are there already."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.roots import config_for
from vse_jax.base.errors import InputError
from vse_jax.commands.export import export
from vse_jax.commands.prepare import prepare
from vse_jax.data import dataset
from vse_jax.data.collate import ImageCollator
from vse_jax.data.dataset import read_split

IDS = {"train": ["391895", "42"], "dev": ["7"], "test": ["9"], "testall": ["9", "8"]}


@pytest.fixture
def config(tmp_path):
    rows = {split: [(k, [f"of {k}"]) for k in ids] for split, ids in IDS.items()}
    mapping = {
        k: f"val2014/COCO_val2014_{int(k):012}.jpg" for ids in IDS.values() for k in ids
    }
    dataset.write_root(tmp_path / "root", rows, mapping)
    config = config_for(tmp_path / "root", tmp_path / "features.tsv", "coco")
    config.image.kind = "region"
    config.image.max_regions, config.image.feature_dim = 4, 8
    return config


def features(image: int, count: int) -> np.ndarray:
    return np.random.default_rng(image).random((count, 8), np.float32)


def row(image: int, count: int = 4, **changes) -> str:
    """A line of such a file."""
    boxes = np.zeros((count, 4), np.float32)
    cells = {
        "image_id": image,
        "image_w": 640,
        "image_h": 480,
        "num_boxes": count,
        "boxes": base64.b64encode(boxes).decode(),
        "features": base64.b64encode(features(image, count)).decode(),
    }
    return "\t".join(map(str, (cells | changes).values())) + "\n"


def write(config, *rows: str, name="features.tsv"):
    path = Path(config.data.source).with_name(name)
    path.write_text("".join(rows))


ALL = (8, 9, 391895, 42, 7)


def test_as_many_regions_each(config, tmp_path):
    write(config, *map(row, ALL), row(1234))
    prepare(config)
    for split, ids in IDS.items():
        array = np.load(tmp_path / f"root/precomp/{split}_ims.npy")
        assert (array.shape, array.dtype) == ((len(ids), 4, 8), np.float32)
        for image, found in zip(ids, array, strict=True):
            np.testing.assert_array_equal(found, features(int(image), 4))
    assert not list((tmp_path / "root/precomp").glob("*_lengths.npy"))
    assert read_split(config, "train").regions.shape == (2, 4, 8)


COUNTS = {8: 1, 9: 4, 391895: 2, 42: 3, 7: 4}


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_ten_to_a_hundred(config, tmp_path, form):
    write(config, *(row(image, count) for image, count in COUNTS.items()))
    prepare(config)
    lengths = np.load(tmp_path / "root/precomp/train_lengths.npy")
    assert lengths.tolist() == [2, 3]
    assert not (tmp_path / "root/precomp/dev_lengths.npy").exists()
    if form == "tfds":
        export(config)
        config.data.format = "tfds"
        path = tmp_path / "root/tfds/image_text/1.0.0/features.json"
        described = json.loads(path.read_text())["featuresDict"]["features"]
        assert described["regions"]["tensor"]["shape"]["dimensions"] == ["-1", "8"]
    split = read_split(config, "train")
    np.testing.assert_array_equal(split.regions[0], features(391895, 2))
    collator = ImageCollator(config, split)
    batch = collator.empty(2)
    for image in (0, 1):
        collator.read(batch, image, image, None)
    assert batch["region_lengths"].tolist() == [2, 3]
    np.testing.assert_array_equal(batch["regions"][1, :3], features(42, 3))
    assert (batch["regions"][1, 3:] == 0).all()


def test_several_files_and_a_split_that_is_elsewhere(config, tmp_path):
    config.data.source = str(tmp_path / "tsv/x")
    (tmp_path / "tsv").mkdir()
    write(config, row(391895), name="train.tsv.0")
    write(config, row(42), row(7), row(9), name="train.tsv.1")
    config.data.source = str(tmp_path / "tsv")
    with pytest.raises(
        InputError, match=r"no features for 1 of the 2 .*'testall'.*'8'"
    ):
        prepare(config)
    assert not list((tmp_path / "root/precomp").glob("*.npy"))  # nothing is left
    for name in ("ids", "caps"):
        (tmp_path / f"root/precomp/testall_{name}.txt").unlink()
    prepare(config)
    assert len(list((tmp_path / "root/precomp").glob("*.npy"))) == 3


def test_flickrs_names(config, tmp_path):
    """Ids of the published lists are numbers; the files have Flickr's."""
    mapping = {str(k): f"{k + 1000}.jpg" for k in (391895, 42, 7, 9, 8)}
    (tmp_path / "root/id_mapping.json").write_text(json.dumps(mapping))
    write(config, *(row(k + 1000) for k in ALL))
    prepare(config)
    array = np.load(tmp_path / "root/precomp/dev_ims.npy")
    np.testing.assert_array_equal(array[0], features(1007, 4))


BAD = {
    "too many regions": (row(42, 5), r"line 2: 5 regions; .*max_regions is 4"),
    "other features": (
        row(42, features=base64.b64encode(np.zeros((4, 9), np.float32)).decode()),
        r"line 2: 144 bytes are not 4 regions of config.image.feature_dim = 8",
    ),
    "no regions": (row(42, 0), "line 2: 0 bytes are not 0 regions"),
    "no base64": (row(42, features="AA?A"), "line 2: not whole"),
    "ends early": (row(42)[:-60], "line 2: .*"),
    "fewer cells": ("42\t5\n", "line 2: 2 cells are no row of region features"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(config, tmp_path, name):
    line, message = BAD[name]
    write(config, row(391895), line)
    with pytest.raises(InputError, match=rf"features\.tsv, {message}"):
        prepare(config)
    assert not list((tmp_path / "root/precomp").glob("*ims*"))


def test_without_lists(config, tmp_path):
    write(config, row(1))
    config.data.root = str(tmp_path / "new")
    with pytest.raises(InputError, match="no lists of images; prepare captions first"):
        prepare(config)


def test_of_other_images(config):
    write(config, row(1), row(2))
    with pytest.raises(InputError, match="of its 2 images none is in the lists"):
        prepare(config)


@pytest.mark.parametrize("lengths", [[2], [[1, 2]], [0, 3], [1, 5], [1.0, 2.0]])
def test_lengths_that_do_not_fit(config, tmp_path, lengths):
    write(config, *map(row, ALL))
    prepare(config)
    np.save(tmp_path / "root/precomp/train_lengths.npy", np.array(lengths))
    with pytest.raises(InputError, match=r"train_lengths\.npy"):
        read_split(config, "train")
