"""Data roots in a bucket, over HTTP."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.tar_shards_test import image_bytes, write_tar
from tests.helpers.buckets import BUCKET
from tests.helpers.roots import config_for, contents, name_in
from tests.helpers.steps import eval_batches
from vse_jax.base.buckets import BucketPath
from vse_jax.base.errors import InputError
from vse_jax.base.files import any_path, read_object
from vse_jax.commands.build_vocab import build_vocab
from vse_jax.commands.export import export
from vse_jax.commands.prepare import prepare
from vse_jax.data import buckets as remote
from vse_jax.data import records
from vse_jax.data.dataset import read_split
from vse_jax.data.tokenizers import caption_tokenizer


@pytest.fixture
def bucket(in_buckets, tiny_root, tiny_config, tmp_path, request):
    """A folder in a bucket: tiny/, the tiny root's export without pictures; vocab/."""
    tiny_config.data.root = str(tiny_root)
    tiny_config.data.export_to = str(tmp_path / "tiny")
    export(tiny_config)
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    folder = any_path(f"gs://{BUCKET}/data/{request.node.name}", "")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            (folder / str(path.relative_to(tmp_path))).upload(path)
    shutil.rmtree(tmp_path / "tiny")
    return folder


@pytest.fixture
def config(bucket, tiny_config, tmp_path):
    tiny_config.data.root = str(bucket / "tiny")
    tiny_config.data.cache = str(tmp_path / "cache")
    return tiny_config


def batches(config):
    split = read_split(config, "test")
    tokens = caption_tokenizer(config)(split.captions)
    return [
        (batch, index)
        for what in ("images", "captions")
        for batch, index in eval_batches(config, split, what, tokens)
    ]


def test_batches_of_a_bucket(config, tiny_root, tmp_path):
    config.data.format = "tfds"
    ours = batches(config)
    config.data.root, config.data.format = str(tiny_root), "folder"
    theirs = batches(config)
    assert len(ours) == len(theirs) > 0
    for (a, i), (b, j) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(i, j)
        for name in a.keys() | b.keys():
            np.testing.assert_array_equal(a[name], b[name])
    # Only the shards of the split that was read, and nothing half-written.
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len([name for name in kept if "array_record" in name]) == 1


def test_annotations_of_a_bucket(config, bucket):
    (bucket / "tiny/cxc_annots/cxc_it.json").write_bytes(b'{"i2t": {}}')
    config.data.format = "tfds"
    folder = read_split(config, "test").root / "cxc_annots"
    assert read_object(folder / "cxc_it.json") == {"i2t": {}}
    with pytest.raises(InputError, match=r"gs://.*/cxc_t2t.json: No such file"):
        read_object(folder / "cxc_t2t.json")


def test_shards_are_fetched_once(config, bucket, monkeypatch):
    config.data.format = "tfds"
    read_split(config, "test")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_chunks", None)
        read_split(config, "test")
    # But again when the copy is not whole.
    (shard,) = Path(config.data.cache).rglob("*-test.*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    read_split(config, "test")
    assert shard.read_bytes() == whole


def test_a_missing_or_truncated_shard_is_named(config, bucket):
    config.data.format = "tfds"
    (shard,) = (bucket / "tiny" / records.FOLDER).glob("*test*0000*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(InputError, match=f"gs://.*{shard.name}: [0-9]* bytes"):
        read_split(config, "test")
    shard.unlink()
    with pytest.raises(InputError, match=f"gs://.*{shard.name}: No such file"):
        read_split(config, "test")
    # Of the right size, but not the bytes of the index.
    shard.write_bytes(data[:1000] + bytes(100) + data[1100:])
    with pytest.raises(InputError, match=f"gs://.*{shard.name}: damaged"):
        read_split(config, "test")
    assert not [p for p in Path(config.data.cache).rglob("*00*") if p.is_file()]


def test_refused(config):
    with pytest.raises(InputError, match=r"gs://.*/tiny: needs config.data.format"):
        read_split(config, "test")
    config.data.format = "tfds"
    with pytest.raises(InputError, match=r"gs://.*/tiny/.*/val_caps.txt: No such"):
        read_split(config, "val")
    with pytest.raises(InputError, match=r"gs://.*: name a local file"):
        build_vocab(config)
    config.data.root = "ftp://bucket/tiny"
    with pytest.raises(InputError, match=r"ftp://bucket/tiny: neither a folder nor gs"):
        read_split(config, "test")


def test_a_scheme_without_its_package(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://.*/tiny: the package gcsfs is"):
        read_split(config, "test")


def test_what_a_service_says_is_one_line(config, monkeypatch):
    class ServiceError(Exception):
        pass

    class Service:
        def open(self, path, mode):
            raise ServiceError("500\nno luck")

    monkeypatch.setattr(BucketPath, "service", Service())
    config.data.format = "tfds"
    with pytest.raises(InputError, match=r"gs://.*_caps.txt: 500 no luck"):
        read_split(config, "test")


@pytest.mark.parametrize("source", ["", "/{00..02}.tar"])
def test_tars_are_read_where_they_lie(bucket, tmp_path, source):
    for number, split in enumerate(("train", "dev", "test")):
        key = name_in(split, f"{number:02}/{{}}").partition("/")[2]
        sample = {f"{key}.png": image_bytes(), f"{key}.txt": split.encode()}
        tar = write_tar(tmp_path / "x.tar", sample)
        (bucket / f"tars/{number:02}.tar").upload(tar)
    prepare(config_for(tmp_path / "made", f"{bucket}/tars{source}"))
    found = contents(tmp_path / "made")
    assert [found[f"{split}_caps"] for split in ("train", "dev")] == [
        ["train"],
        ["dev"],
    ]
    assert len(list((tmp_path / "made/images").rglob("*.png"))) == 3


def test_only_tars_are(bucket, tmp_path):
    captions = bucket / "captions.csv"
    captions.write_bytes(b"image,caption\n")
    with pytest.raises(InputError, match="only tars are read from a bucket"):
        prepare(config_for(tmp_path / "made", str(captions)))
