"""What makes a run's data other data."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.data.dataset import read_split
from vse_jax.data.digests import changes, data_digests


@pytest.fixture
def root(tiny_root, tmp_path):
    shutil.copytree(tiny_root, tmp_path / "tiny")
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    return tmp_path / "tiny"


def digests(root, kind="grid", **data):
    config = draft(tiny.get_config(str(root)))
    config.data.update(data)
    config.image.kind = kind
    config.image.max_regions, config.image.feature_dim = 7, 8
    splits = [read_split(config, name) for name in ("train", "dev")]
    # What a checkpoint gives back.
    return json.loads(json.dumps(data_digests(config, splits)))


def swap_lines(path):
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([second, first, *rest]))


def edit_a_caption(root):
    path = root / "precomp/dev_caps.txt"
    path.write_text(path.read_text().replace("the", "a", 1))


def edit_the_mapping(root):
    path = root / "id_mapping.json"
    mapping = json.loads(path.read_text())
    a, b = (root / "precomp/train_ids.txt").read_text().split()[1:3]
    mapping[a], mapping[b] = mapping[b], mapping[a]
    path.write_text(json.dumps(mapping))


def replace_the_pictures(root):
    first, *others = (root / "precomp/dev_ids.txt").read_text().split()
    for image in others:
        shutil.copy(root / f"images/{first}.png", root / f"images/{image}.png")


def shorten(root, lines=5):
    for name, count in (("ids", 1), ("caps", 5)):
        path = root / f"precomp/dev_{name}.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-count]))


def edit_the_vocabulary(root):
    swap_lines(root.parent / "vocab/vocab.txt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: swap_lines(root / "precomp/dev_ids.txt"),
            "'dev' has other image ids",
        ),
        (
            lambda root: swap_lines(root / "precomp/train_caps.txt"),
            "'train' has other captions",
        ),
        (edit_a_caption, "'dev' has other captions"),
        (edit_the_mapping, "'train' has other names of image files"),
        (replace_the_pictures, "'dev' has other images or features"),
        (shorten, "'dev' had 32 images and 160 captions, now 31 and 155"),
        (edit_the_vocabulary, "the vocabulary is another one"),
    ],
)
def test_a_change_is_named(root, change, said):
    before = digests(root)
    change(root)
    assert changes(before, digests(root)) == [said]


def test_other_captions_a_picture(root):
    before = digests(root)
    assert changes(before, digests(root, captions_per_image=2)) == [
        f"{name!r} had {count} images and {5 * count} captions, now {count} and "
        f"{2 * count}"
        for name, count in (("train", 96), ("dev", 32))
    ]


def test_a_caption_of_another_image(root):
    path = root / "precomp/dev_ids.txt"
    ids = [line for line in path.read_text().split() for _ in range(5)]
    path.write_text("\n".join(ids))
    before = digests(root)
    ids[4] = ids[5]
    path.write_text("\n".join(ids))
    assert changes(before, digests(root)) == ["'dev' has other captions of the images"]


def test_what_only_looks_different_is_the_same(root, tmp_path):
    """Another place, line ends of Windows, ids listed once a caption."""
    before = digests(root)
    root = root.rename(tmp_path / "elsewhere")
    for name in ("train_ids", "dev_caps"):
        path = root / f"precomp/{name}.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    path = root / "precomp/dev_ids.txt"
    path.write_text("".join(5 * f"{line}\n" for line in path.read_text().split()))
    assert changes(before, digests(root)) == []


def test_the_limit_of_dev_counts(root):
    """What lies beyond it decides nothing; what lies before it, all."""
    before = digests(root, dev_captions=100)
    shorten(root)
    assert changes(before, digests(root, dev_captions=100)) == []
    assert changes(before, digests(root, dev_captions=95)) == [
        "'dev' had 20 images and 100 captions, now 19 and 95"
    ]


def test_features(root):
    rng = np.random.default_rng(0)
    for split, count in tiny.SPLITS.items():
        np.save(
            root / f"precomp/{split}_ims.npy", rng.random((count, 6, 8), np.float32)
        )
    before = digests(root, "region")
    features = np.load(root / "precomp/dev_ims.npy")
    np.save(root / "precomp/dev_ims.npy", np.repeat(features, 5, axis=0))
    assert changes(before, digests(root, "region")) == []
    np.save(root / "precomp/dev_ims.npy", 2 * features)
    assert changes(before, digests(root, "region")) == [
        "'dev' has other images or features"
    ]
    np.save(root / "precomp/dev_ims.npy", features[:, :5])
    assert changes(before, digests(root, "region")) == [
        "'dev' has other shape of features and images or features"
    ]


def test_a_split_that_was_not_known_is_not_compared(root):
    before = digests(root)
    now = digests(root)
    now["splits"]["testall"] = now["splits"]["dev"] | {"ids": "others"}
    assert changes(before, now) == changes(now, before) == []
