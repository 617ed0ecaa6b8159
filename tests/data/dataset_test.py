"""The on-disk layout: what is read, what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.data import dataset
from vse_jax.data.dataset import read_split


def make_root(root: Path, images: int = 4, per_image: int = 5) -> Path:
    """A data root with a test split; its pictures are empty files."""
    rows = [
        (str(i), [f"caption {j} of {i}" for j in range(per_image)])
        for i in range(images)
    ]
    dataset.write_root(
        root, {"test": rows}, {image: f"{image}.jpg" for image, _ in rows}
    )
    (root / "images").mkdir()
    for image, _ in rows:
        (root / "images" / f"{image}.jpg").touch()
    return root


def config_for(root: Path, kind: str = "grid"):
    c = draft()
    c.data.root = str(root)
    c.image.kind = kind
    c.image.feature_dim = 8
    return c


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def test_written_root_reads_back(root):
    split = read_split(config_for(root), "test")

    assert split.image_ids == ["0", "1", "2", "3"]
    assert split.captions_per_image.tolist() == [5, 5, 5, 5]
    assert split.captions[5:7] == ["caption 0 of 1", "caption 1 of 1"]
    assert split.images == [root / "images" / f"{i}.jpg" for i in range(4)]
    assert split.regions is None
    assert not list(root.rglob(".*"))  # no temporary file is left


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_ids_may_be_listed_once_per_caption(tmp_path, per_image):
    root = make_root(tmp_path / "root", per_image=per_image)
    ids = [f"{i}\n" for i in range(4) for _ in range(per_image)]
    (root / "precomp/test_ids.txt").write_text("".join(ids))

    split = read_split(config_for(root), "test")

    assert split.image_ids == ["0", "1", "2", "3"]
    assert split.captions_per_image.tolist() == 4 * [per_image]


def test_dev_is_as_long_as_the_config_says(tmp_path, monkeypatch):
    root = make_root(tmp_path / "root", images=1003)
    for part in ("ids", "caps"):
        (root / f"precomp/test_{part}.txt").rename(root / f"precomp/dev_{part}.txt")

    config, lines = config_for(root), []
    monkeypatch.setattr(
        dataset.logging, "info", lambda text, *v: lines.append(text % v)
    )
    assert len(read_split(config, "dev").image_ids) == 1003  # whatever its name is
    assert not lines
    config.data.dev_captions = 5000
    split = read_split(config, "dev")
    assert len(split.image_ids) == len(split.images) == 1000
    assert len(split.captions) == 5000
    assert split.captions[-1] == "caption 4 of 999"
    assert "the first 5000 of 5015 captions (config.data.dev_captions)" in lines[0]
    config.data.dev_split = "val"
    assert len(read_split(config, "dev").image_ids) == 1003


class TestCaptionsPerImage:
    """Of lists that name an id once: all splits of a root have the same number."""

    @pytest.fixture
    def cut(self, tmp_path):
        """A root whose training captions lost lines, but still divide evenly."""
        root = tmp_path / "root"
        rows = {
            split: [(f"{split}{i}", [f"view {j}" for j in range(5)]) for i in range(12)]
            for split in ("train", "dev", "test")
        }
        mapping = {image: f"{image}.jpg" for many in rows.values() for image, _ in many}
        dataset.write_root(root, rows, mapping)
        captions = root / "precomp/train_caps.txt"
        captions.write_text("".join(captions.read_text().splitlines(True)[:48]))
        (root / "images").mkdir()
        for name in mapping.values():
            (root / "images" / name).touch()
        return root

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_a_list_that_was_cut_is_found_whatever_is_read(self, cut, split):
        message = r"precomp: .*\(t.* has ., .*\).* list each image's id once for each"
        with pytest.raises(InputError, match=message) as error:
            read_split(config_for(cut), split)
        for count in ("train has 4", "dev has 5", "test has 5"):
            assert count in str(error.value)

    def test_the_user_may_mean_it(self, cut):
        path = cut / "precomp/train_ids.txt"
        path.write_text("".join(4 * f"{line}\n" for line in path.read_text().split()))
        config = config_for(cut)
        assert (read_split(config, "train").captions_per_image == 4).all()
        assert (read_split(config, "dev").captions_per_image == 5).all()

    def test_lists_that_are_damaged_or_unused_do_not_matter(self, cut):
        (cut / "precomp/train_caps.txt").write_text("one\n")
        assert (read_split(config_for(cut), "test").captions_per_image == 5).all()
        (cut / "precomp/train_ids.txt").unlink()
        assert (read_split(config_for(cut), "dev").captions_per_image == 5).all()


class TestAnyNumber:
    """Images with one, three and two captions."""

    ROWS = (("a", ["a0"]), ("b", ["b0", "b1", "b2"]), ("c", ["c0", "c1"]))

    @pytest.fixture
    def config(self, tmp_path):
        mapping = {image: f"{image}.jpg" for image, _ in self.ROWS}
        dataset.write_root(tmp_path, {"dev": self.ROWS, "test": [*self.ROWS]}, mapping)
        (tmp_path / "images").mkdir()
        for name in mapping.values():
            (tmp_path / "images" / name).touch()
        return config_for(tmp_path)

    def test_an_id_is_listed_for_each_caption(self, config):
        path = Path(config.data.root) / "precomp/test_ids.txt"
        assert path.read_text().split() == ["a", "b", "b", "b", "c", "c"]
        split = read_split(config, "test")
        assert split.image_ids == ["a", "b", "c"]
        assert split.captions == ["a0", "b0", "b1", "b2", "c0", "c1"]
        assert split.offsets.tolist() == [0, 1, 4, 6]
        assert split.captions_per_image.tolist() == [1, 3, 2]
        assert split.caption_images.tolist() == [0, 1, 1, 1, 2, 2]

    @pytest.mark.parametrize(
        ("most", "captions", "offsets"),
        [
            (1, ["a0", "b0", "c0"], [0, 1, 2, 3]),
            (2, ["a0", "b0", "b1", "c0", "c1"], [0, 1, 3, 5]),
            (3, ["a0", "b0", "b1", "b2", "c0", "c1"], [0, 1, 4, 6]),
        ],
    )
    def test_the_first_ones(self, config, most, captions, offsets):
        config.data.captions_per_image = most
        split = read_split(config, "test")
        assert (split.captions, split.offsets.tolist()) == (captions, offsets)
        assert split.image_ids == ["a", "b", "c"]

    @pytest.mark.parametrize(("limit", "images"), [(1, 1), (3, 1), (4, 2), (5, 2)])
    def test_dev_has_whole_images(self, config, limit, images):
        config.data.dev_captions = limit
        split = read_split(config, "dev")
        assert split.image_ids == ["a", "b", "c"][:images]
        assert len(split.captions) == split.offsets[-1] == [1, 4][images - 1]
        assert len(split.images) == images

    def test_the_limit_of_dev_counts_what_is_taken(self, config):
        """As in the original: five an image, and of those the first 5,000."""
        config.data.dev_captions, config.data.captions_per_image = 2, 1
        assert read_split(config, "dev").captions == ["a0", "b0"]

    def test_features_are_of_images(self, config):
        path = Path(config.data.root) / "precomp/test_ims.npy"
        config.image.kind = "region"
        regions = np.random.default_rng(0).random((3, 3, 8), np.float32)
        np.save(path, regions)
        np.testing.assert_array_equal(read_split(config, "test").regions[2], regions[2])
        np.save(path, regions.repeat(2, axis=0))  # divides, but means nothing
        with pytest.raises(InputError, match=r"test_ims.npy: 6 rows for 3 images"):
            read_split(config, "test")


def test_fewer_dev_captions_than_an_image_has(tmp_path):
    config = config_for(make_root(tmp_path / "root"))
    config.data.dev_split, config.data.dev_captions = "test", 3
    message = r"config.data.dev_captions: 3 is less than the 5 captions of an image"
    with pytest.raises(InputError, match=message):
        read_split(config, "test")
    config.data.dev_captions = 5
    assert read_split(config, "test").image_ids == ["0"]


def test_flickr_has_its_own_picture_folder(root):
    (root / "images").rename(root / "flickr30k-images")
    c = config_for(root)
    c.data.name = "f30k"

    assert read_split(c, "test").images[0].parent.name == "flickr30k-images"


def test_caption_lines(root):
    """An empty caption is legal; only line ends end a line."""
    captions = ["\ufeff first ", "", "one\u2028line", "tab\tinside", "last"]
    text = "\r\n".join(captions * 4) + "\r\n"
    (root / "precomp/test_caps.txt").write_bytes(text.encode())

    split = read_split(config_for(root), "test")

    assert split.captions[:5] == ["first", "", "one\u2028line", "tab\tinside", "last"]


def test_line_breaks_inside_a_caption_are_written_as_spaces(tmp_path):
    dataset.write_root(tmp_path, {"test": [("1", ["two\nlines \r\n here"])]}, {})

    assert dataset.read_lines(tmp_path / "precomp/test_caps.txt") == ["two lines here"]


class TestRegions:
    def test_rows_follow_the_images(self, root):
        regions = np.random.default_rng(0).random((4, 3, 8), np.float32)
        np.save(root / "precomp/test_ims.npy", regions)

        split = read_split(config_for(root, "region"), "test")

        np.testing.assert_array_equal(split.regions[2], regions[2])

    def test_rows_once_per_caption(self, root):
        regions = np.random.default_rng(0).random((4, 3, 8), np.float32)
        np.save(root / "precomp/test_ims.npy", regions.repeat(5, axis=0))

        split = read_split(config_for(root, "region"), "test")

        assert len(split.regions) == 4
        np.testing.assert_array_equal(split.regions[2], regions[2])

    def test_pictures_are_not_needed(self, root):
        np.save(root / "precomp/test_ims.npy", np.zeros((4, 3, 8), np.float32))
        (root / "id_mapping.json").unlink()

        assert read_split(config_for(root, "region"), "test").images is None

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((7, 3, 8), np.float32), "7 rows for 4 images"),
            (np.zeros((4, 3, 9), np.float32), "3 regions of 9 features"),
            (np.zeros((4, 37, 8), np.float32), "37 regions of 8 features"),
            (np.zeros((4, 8), np.float32), r"shape \(4, 8\)"),
            (np.zeros((4, 3, 8), np.int32), "int32 values"),
        ],
    )
    def test_wrong_arrays(self, root, array, message):
        np.save(root / "precomp/test_ims.npy", array)

        with pytest.raises(InputError, match=f"test_ims.npy: .*{message}"):
            read_split(config_for(root, "region"), "test")


def write(name: str, text: str | bytes):
    """A way to break a data root: another content of a file."""
    data = text if isinstance(text, bytes) else text.encode()
    return lambda root: (root / name).write_bytes(data)


def remove(name: str):
    return lambda root: (root / name).unlink()


BAD_ROOTS = {
    "no ids": (remove("precomp/test_ids.txt"), "test_ids.txt: No such file"),
    "no captions": (remove("precomp/test_caps.txt"), "test_caps.txt: No such file"),
    "no mapping": (remove("id_mapping.json"), "id_mapping.json: No such file"),
    "no picture": (remove("images/2.jpg"), "images/2.jpg: no such file.*'2'"),
    "counts": (
        write("precomp/test_caps.txt", "a caption\n" * 18),
        "test_caps.txt: 18 captions do not divide by the 4 images of test_ids.txt",
    ),
    "fewer captions": (
        write("precomp/test_caps.txt", "a caption\n" * 3),
        "3 captions do not divide by the 4 images",
    ),
    "counts when listed per caption": (
        write("precomp/test_ids.txt", "0\n0\n1\n1\n"),
        "20 captions do not fit test_ids.txt, which lists 2 images on 4 lines",
    ),
    "no images at all": (write("precomp/test_ids.txt", ""), "test_ids.txt: empty"),
    "no captions at all": (write("precomp/test_caps.txt", ""), "test_caps.txt: empty"),
    "id twice": (
        write("precomp/test_ids.txt", "0\n1\n2\n0\n"),
        "test_ids.txt, line 4: image id '0' is already on line 1",
    ),
    "uneven ids": (
        write("precomp/test_ids.txt", "0\n0\n1\n"),
        "20 captions do not fit test_ids.txt, which lists 2 images on 3 lines",
    ),
    "blank id": (write("precomp/test_ids.txt", "0\n\n2\n3\n"), "line 2: no image id"),
    "unmapped id": (
        write("precomp/test_ids.txt", "0\n1\n2\nx\n"),
        "test_ids.txt: image id 'x' has no image in .*id_mapping.json",
    ),
    "mapping to no path": (
        write("id_mapping.json", json.dumps({str(i): i for i in range(4)})),
        "image id '0' has no image",
    ),
    "mapping is no JSON": (write("id_mapping.json", "{"), "id_mapping.json: not JSON"),
    "mapping is a list": (
        write("id_mapping.json", "[]"),
        "id_mapping.json: not a JSON object",
    ),
    "not UTF-8": (
        write("precomp/test_caps.txt", b"fine\nalso fine\ncaf\xe9\n"),
        "test_caps.txt, line 3: not UTF-8",
    ),
}


@pytest.mark.parametrize("name", BAD_ROOTS)
def test_bad_root_gives_one_clear_line(root, name):
    damage, message = BAD_ROOTS[name]
    damage(root)

    with pytest.raises(InputError, match=message) as error:
        read_split(config_for(root), "test")
    assert "\n" not in str(error.value)


def test_missing_root_and_split(root):
    with pytest.raises(InputError, match=r"nowhere: no such data root"):
        read_split(config_for(root / "nowhere"), "test")
    with pytest.raises(InputError, match=r"train_caps.txt: No such file"):
        read_split(config_for(root), "train")


def test_skip_lets_a_picture_be_missing(root):
    (root / "images/2.jpg").unlink()
    c = config_for(root)
    c.data.on_bad_image = "skip"

    assert len(read_split(c, "test").images) == 4


class TestClaimRoot:
    def test_same_source_again(self, tmp_path):
        dataset.claim_root(tmp_path / "root", "mine.csv")
        make_root(tmp_path / "root")
        dataset.claim_root(tmp_path / "root", "mine.csv")

    def test_other_source(self, tmp_path):
        dataset.claim_root(tmp_path, "mine.csv")
        with pytest.raises(InputError, match=r"made from mine.csv, not from yours.csv"):
            dataset.claim_root(tmp_path, "yours.csv")

    def test_a_root_that_we_did_not_make(self, root):
        with pytest.raises(InputError, match="already holds a data set"):
            dataset.claim_root(root, "mine.csv")
        assert not (root / "prepared_from.txt").exists()
