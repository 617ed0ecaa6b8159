"""Splits read from records: the batches of the folder, and what is refused."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.helpers.drafts import draft
from tests.helpers.steps import eval_batches
from vse_jax.base.errors import InputError
from vse_jax.commands.export import export
from vse_jax.data.collate import ImageCollator
from vse_jax.data.dataset import read_split
from vse_jax.data.digests import changes, data_digests
from vse_jax.data.images import load_image
from vse_jax.data.loader import TrainData
from vse_jax.data.records import (
    FOLDER,
    decode_example,
    encode_example,
    read_export,
)
from vse_jax.data.tokenizers import caption_tokenizer


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    """grain's worker processes read absl's flags, as main.py has parsed them."""
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", params=["grid", "region"])
def exported(request, tiny_root, tmp_path_factory):
    """(kind, exported copy of the tiny root): several shards a split."""
    root = tmp_path_factory.mktemp(request.param) / "tiny"
    shutil.copytree(tiny_root, root)
    shutil.copytree(tiny_root.parent / "vocab", root.parent / "vocab")
    config = small_config(request.param, root)
    if request.param == "region":
        rng = np.random.default_rng(0)
        for split in ("train", "dev", "test"):
            images = len((root / f"precomp/{split}_ids.txt").read_text().split())
            regions = rng.random((images, 6, 8), np.float32)
            np.save(root / f"precomp/{split}_ims.npy", regions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vse_jax.commands.export.SHARD_SIZE", 5_000)
        export(config)
    return request.param, root


def small_config(kind, root):
    from tests.helpers import tiny

    config = draft(tiny.get_config(str(root)))
    config.image.kind = kind
    config.image.max_regions, config.image.feature_dim = 7, 8
    config.data.workers, config.data.num_workers = "threads", 2
    return config


@pytest.fixture
def config(exported):
    return small_config(*exported)


@pytest.fixture
def damaged(exported, tmp_path):
    """A config over a copy of the exported root that a test may damage."""
    kind, root = exported
    shutil.copytree(root, tmp_path / "tiny")
    shutil.copytree(root.parent / "vocab", tmp_path / "vocab")
    return small_config(kind, tmp_path / "tiny")


def test_each_format_has_the_same_data(config):
    """A run may go on with another one: its digests say that nothing changed."""
    found = {}
    for form in ("folder", "tfds"):
        config.data.format = form
        splits = [read_split(config, name) for name in ("train", "dev")]
        found[form] = data_digests(config, splits)
    assert changes(found["folder"], found["tfds"]) == []
    for name, split in found["tfds"]["splits"].items():
        # Records do not tell what their files were called.
        folder = found["folder"]["splits"][name]
        assert split | {"files": None} == folder | {"files": None}


def train_batches(config, count=8):
    split = read_split(config, "train")
    data = TrainData(config, split, caption_tokenizer(config)(split.captions))
    with data.batches(3) as batches:
        return list(itertools.islice(batches, count))


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("distinct", [False, True])
def test_images_with_any_number_of_captions(tiny_root, tmp_path, distinct):
    from tests.helpers import tiny

    root = tmp_path / "tiny"
    shutil.copytree(tiny_root, root)
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    tiny.make_uneven(root)
    config = small_config("grid", root)
    config.batch_size, config.data.distinct_images = 8, distinct
    # The lists are exported as they are, whatever a run takes of them.
    config.data.captions_per_image = 2
    export(config)
    config.data.captions_per_image = None
    split = read_split(config, "train")
    folder = train_batches(config)
    config.data.format = "tfds"
    assert_equal_batches(train_batches(config), folder)
    config.data.captions_per_image = 2
    assert read_split(config, "train").captions_per_image.max() == 2

    records = read_split(config, "train").images
    record = decode_example(records.source[3])
    first, end = split.offsets[3:5]
    assert end - first == 4
    assert [str(c, "utf-8") for c in record["captions"]] == split.captions[first:end]


@pytest.mark.parametrize("exported", ["region"], indirect=True)
def test_bad_numbers_are_named(damaged, monkeypatch):
    """When a root is exported, and in an export that was made without looking."""
    path = f"{damaged.data.root}/precomp/train_ims.npy"
    regions = np.load(path)
    regions[40, 3, 1] = np.nan
    np.save(path, regions)
    image_id = read_split(damaged, "train").image_ids[40]
    message = rf"image id '{image_id}': NaN or infinity in region 3"
    with pytest.raises(InputError, match=rf"train_ims\.npy, row 40, {message}"):
        export(damaged)
    with monkeypatch.context() as patch:
        patch.setattr("vse_jax.data.regions.finite_regions", lambda found, _: found)
        export(damaged)
    damaged.data.format = "tfds"
    split = read_split(damaged, "train")
    np.testing.assert_array_equal(split.regions[41], regions[41])
    with pytest.raises(InputError, match=rf"train\S*array_record\S*, {message}"):
        split.regions[40]


class TestBatches:
    def test_train(self, config):
        expected = train_batches(config)
        config.data.format = "tfds"
        assert_equal_batches(train_batches(config), expected)

    def test_rows_travel_to_processes(self, config):
        config.data.format = "tfds"
        rows = ImageCollator(config, read_split(config, "train"))
        batch = rows.empty(1)
        rows.read(batch, 0, 95, None)  # its reader is open now
        data = pickle.dumps(rows)
        again = pickle.loads(data).empty(1)
        pickle.loads(data).read(again, 0, 95, None)
        assert_equal_batches([again], [batch])
        assert len(data) < 20_000

    @pytest.mark.parametrize("what", ["images", "captions"])
    def test_eval(self, config, what):
        def batches():
            split = read_split(config, "dev")
            tokens = caption_tokenizer(config)(split.captions)
            return [
                batch | {"index": index}
                for batch, index in eval_batches(config, split, what, tokens)
            ]

        expected = batches()
        config.data.format = "tfds"
        assert_equal_batches(batches(), expected)

    def test_split(self, config):
        folder = read_split(config, "train")
        config.data.format = "tfds"
        split = read_split(config, "train")
        assert split.image_ids == folder.image_ids
        assert split.captions == folder.captions
        if config.image.kind == "grid":  # as thumbnails are read
            image = load_image(split.images[7])
            np.testing.assert_array_equal(image, load_image(folder.images[7]))
            assert len(split.images) == 96
            with pytest.raises(IndexError):
                split.images[96]
        else:
            assert split.images is None
            assert split.regions.shape == (96, 6, 8)
            np.testing.assert_array_equal(split.regions[-1], folder.regions[95])

    def test_a_missing_shard_is_named(self, damaged):
        damaged.data.format = "tfds"
        shard = shard_paths(damaged, "train")[1]
        shard.unlink()
        with pytest.raises(InputError, match=f"{shard.name}: No such file") as error:
            read_split(damaged, "train")
        assert "\n" not in str(error.value)
        read_split(damaged, "dev")  # is whole

    def test_a_truncated_shard_is_named(self, damaged):
        damaged.data.format = "tfds"
        shard = shard_paths(damaged, "train")[1]
        shard.write_bytes(shard.read_bytes()[:-1000])
        with pytest.raises(InputError, match=f"{shard.name}: [0-9]* bytes, but [0-9]*"):
            read_split(damaged, "train")

    def test_a_damaged_record_names_its_shard(self, damaged):
        damaged.data.format = "tfds"
        shard = shard_paths(damaged, "train")[1]
        data = bytearray(shard.read_bytes())
        data[1000:2000] = bytes(1000)
        shard.write_bytes(data)
        with pytest.raises(InputError, match=f"{shard.name}: damaged at image") as e:
            train_batches(damaged, 30)
        assert "\n" not in str(e.value)


@pytest.mark.system
@pytest.mark.parametrize("exported", ["grid"], indirect=True)
def test_processes(exported):
    """Of one kind: processes take seconds to start."""
    config = small_config(*exported)
    expected = train_batches(config, 3)
    config.data.format, config.data.workers = "tfds", "processes"
    assert_equal_batches(train_batches(config, 3), expected)


def shard_paths(config, split):
    folder = Path(config.data.root) / FOLDER
    shards = read_export(folder)[split].shards
    assert len(shards) > 2
    return [folder / shard.name for shard in shards]


@pytest.mark.parametrize("exported", ["grid"], indirect=True)
def test_a_bad_picture_is_skipped_as_in_the_folder(exported, damaged):
    picture = read_split(damaged, "train").images[7]
    picture.write_bytes(b"no picture")
    read_split(damaged, "train").images[8].unlink()
    damaged.data.on_bad_image = "skip"
    export(damaged)
    expected = train_batches(damaged, 30)

    damaged.data.format = "tfds"
    assert_equal_batches(train_batches(damaged, 30), expected)

    damaged.data.on_bad_image = "error"
    message = f"-of-\\d+, image id '{picture.stem}': not a readable image"
    with pytest.raises(InputError, match=message) as error:
        load_image(read_split(damaged, "train").images[7])
    assert "object at" not in str(error.value)


class TestRefused:
    @pytest.fixture
    def config(self, damaged):
        damaged.data.format = "tfds"
        return damaged

    def index(self, config):
        return Path(config.data.root) / FOLDER / "checksums.json"

    def test_a_split_that_was_not_exported(self, config):
        precomp = Path(config.data.root) / "precomp"
        for part in ("ids", "caps"):
            shutil.copy(precomp / f"dev_{part}.txt", precomp / f"val_{part}.txt")
        with pytest.raises(
            InputError, match=r"checksums.json: no split 'val'; --mode="
        ):
            read_split(config, "val")

    def test_other_captions(self, config):
        captions = Path(config.data.root) / "precomp/dev_caps.txt"
        captions.write_text(captions.read_text().replace("red", "blue"))
        with pytest.raises(
            InputError, match=r"checksums.json: its records are not of the"
        ):
            read_split(config, "dev")

    def test_other_kind(self, config):
        kinds = {"grid": "region", "region": "grid"}
        config.image.kind = kinds[config.image.kind]
        with pytest.raises(
            InputError, match=r"checksums.json: an export of image.kind"
        ):
            read_split(config, "dev")

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"version": 1}', '{"version": 1, "splits": {"dev": 1}}']
    )
    def test_a_damaged_index(self, config, text):
        self.index(config).write_text(text)
        with pytest.raises(
            InputError, match=r"checksums.json: not the checksums of an"
        ) as e:
            read_split(config, "dev")
        assert "\n" not in str(e.value)

    def test_another_version(self, config):
        fields = json.loads(self.index(config).read_text())
        self.index(config).write_text(json.dumps(fields | {"version": 2}))
        with pytest.raises(InputError, match=r"checksums.json: version 2; .* reads 1"):
            read_split(config, "dev")


@pytest.mark.parametrize("exported", ["region"], indirect=True)
def test_other_region_shape(exported, config):
    config.data.format, config.image.feature_dim = "tfds", 16
    with pytest.raises(InputError, match=r"6 regions of 8 features; .*feature_dim 16"):
        read_split(config, "dev")


RECORD = {
    "id": ["é".encode()],
    "captions": [b"a", b"", b"b" * 200],
    "image": [bytes(100_000)],
}


class TestExamples:
    """A record is the protocol buffer that TFDS reads and writes."""

    def test_tfds_reads_ours_and_we_read_theirs(self):
        from tensorflow_datasets.proto import tf_example_pb2

        data = encode_example(RECORD)
        theirs = tf_example_pb2.Example.FromString(data)
        features = theirs.features.feature
        found = {name: list(features[name].bytes_list.value) for name in features}
        assert found == RECORD
        assert decode_example(theirs.SerializeToString()) == RECORD

    def test_a_damaged_one_is_no_example(self):
        data = encode_example(RECORD)
        for end in (1, 3, 10, 200, len(data) - 1):
            with pytest.raises((ValueError, IndexError)):
                decode_example(data[:end])
        with pytest.raises(ValueError, match="a number where"):
            decode_example(b"\x08\x01")
