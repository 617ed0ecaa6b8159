"""Data roots in a bucket: a stand-in that fsspec keeps in memory."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from tests.data.prepare.tar_shards_test import image_bytes, write_tar
from tests.helpers.roots import config_for, contents, name_in
from tests.helpers.steps import eval_batches
from vse_jax.base.errors import InputError
from vse_jax.base.files import read_object
from vse_jax.commands.build_vocab import build_vocab
from vse_jax.commands.export import export
from vse_jax.commands.prepare import prepare
from vse_jax.data import buckets as remote
from vse_jax.data.dataset import read_split
from vse_jax.data.tokenizers import caption_tokenizer


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    protocol = ("gcs", "gs")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, *args, finalize_on_close=True, **kwargs):
        super().__init__(*args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@pytest.fixture
def bucket(tiny_root, tiny_config, tmp_path, monkeypatch):
    """gs://bucket/tiny with the export of the tiny root but none of its pictures."""
    for name in Bucket.protocol:
        monkeypatch.setitem(_registry, name, Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    tiny_config.data.root = str(tiny_root)
    tiny_config.data.export_to = str(tmp_path / "tiny")
    export(tiny_config)
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path)
            Bucket().pipe_file(f"gs://bucket/{name}", path.read_bytes())
    shutil.rmtree(tmp_path / "tiny")
    return Bucket()


@pytest.fixture
def config(bucket, tiny_config, tmp_path):
    tiny_config.data.root = "gs://bucket/tiny"
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
    bucket.pipe_file("gs://bucket/tiny/cxc_annots/cxc_it.json", b'{"i2t": {}}')
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
    found = bucket.find("bucket/tiny/tfds")
    (shard,) = (path for path in found if "test" in path and "0000" in path)
    data = bucket.cat_file(shard)
    bucket.pipe_file(shard, data[:-1000])
    with pytest.raises(InputError, match=f"gs://.*{Path(shard).name}: [0-9]* bytes"):
        read_split(config, "test")
    bucket.rm(shard)
    with pytest.raises(InputError, match=f"gs://.*{Path(shard).name}: No such file"):
        read_split(config, "test")
    # Of the right size, but not the bytes of the index.
    bucket.pipe_file(shard, data[:1000] + bytes(100) + data[1100:])
    with pytest.raises(InputError, match=f"gs://.*{Path(shard).name}: damaged"):
        read_split(config, "test")
    assert not [p for p in Path(config.data.cache).rglob("*00*") if p.is_file()]


def test_refused(config):
    with pytest.raises(InputError, match=r"gs://bucket/tiny: needs config.data.format"):
        read_split(config, "test")
    config.data.format = "tfds"
    with pytest.raises(InputError, match=r"gs://bucket/tiny/.*/val_caps.txt: No such"):
        read_split(config, "val")
    with pytest.raises(InputError, match=r"gs://.*: name a local file"):
        build_vocab(config)
    config.data.root = "ftp://bucket/tiny"
    with pytest.raises(InputError, match=r"ftp://bucket/tiny: neither a folder nor gs"):
        read_split(config, "test")


def test_a_scheme_without_its_package(config, monkeypatch):
    def without(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", without)
    with pytest.raises(InputError, match=r"gs://bucket/tiny: Please install gcsfs"):
        read_split(config, "test")


def test_what_a_service_says_is_one_line(config, bucket, monkeypatch):
    class ServiceError(Exception):
        pass

    def fail(self, *args, **kwargs):
        raise ServiceError("403\nForbidden")

    monkeypatch.setattr(Bucket, "_open", fail)
    config.data.format = "tfds"
    with pytest.raises(InputError, match=r"gs://.*_caps.txt: 403 Forbidden"):
        read_split(config, "test")


@pytest.mark.parametrize("source", ["", "/{00..02}.tar"])
def test_tars_are_read_where_they_lie(bucket, tmp_path, source):
    for number, split in enumerate(("train", "dev", "test")):
        key = name_in(split, f"{number:02}/{{}}").partition("/")[2]
        sample = {f"{key}.png": image_bytes(), f"{key}.txt": split.encode()}
        tar = write_tar(tmp_path / "x.tar", sample)
        bucket.pipe_file(f"gs://bucket/tars/{number:02}.tar", tar.read_bytes())
    prepare(config_for(tmp_path / "made", f"gs://bucket/tars{source}"))
    found = contents(tmp_path / "made")
    assert [found[f"{split}_caps"] for split in ("train", "dev")] == [
        ["train"],
        ["dev"],
    ]
    assert len(list((tmp_path / "made/images").rglob("*.png"))) == 3


def test_only_tars_are(bucket, tmp_path):
    bucket.pipe_file("gs://bucket/captions.csv", b"image,caption\n")
    with pytest.raises(InputError, match="only tars are read from a bucket"):
        prepare(config_for(tmp_path / "made", "gs://bucket/captions.csv"))
