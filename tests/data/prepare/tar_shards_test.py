"""Tars of samples: streamed, and what is bad in them counted and named."""

import io
import json
import tarfile

import pytest
from PIL import Image

from tests.helpers.roots import config_for, contents, name_in
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare
from vse_jax.data.dataset import read_split
from vse_jax.data.prepare import own_images, tar_shards


def image_bytes(width: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4), "red").save(file, "PNG")
    return file.getvalue()


def write_tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def warnings(monkeypatch):
    lines = []

    def warning(text, *values):
        lines.append(text % values)

    for module in (tar_shards, own_images):
        monkeypatch.setattr(module.logging, "warning", warning)
    return lines


@pytest.fixture
def shards(tmp_path):
    """Two tars as img2dataset writes them: one image of each split, and one more."""
    names = {split: name_in(split, "00000/{:09}") for split in ("train", "dev")}
    keys = {split: name.partition("/")[2] for split, name in names.items()}
    first = {}
    for split, key in sorted(keys.items(), key=lambda item: item[1]):
        first |= {
            f"{key}.png": image_bytes(5),
            f"{key}.json": json.dumps({"caption": "not this"}).encode(),
            f"{key}.txt": f"for {split}".encode(),
        }
    write_tar(tmp_path / "tars/00000.tar", first)
    test = name_in("test", "00001/{:09}")
    key = test.partition("/")[2]
    two = json.dumps({"captions": ["one", "two"], "url": "x"}).encode()
    write_tar(
        tmp_path / "tars/00001.tar",
        {f"{key}.json": two, f"{key}.PNG": image_bytes(6)},
    )
    return names | {"test": test}


@pytest.mark.parametrize("source", ["tars", "tars/{00000..00001}.tar"])
def test_captions_and_images_of_all_tars(tmp_path, shards, source, warnings):
    config = config_for(tmp_path / "root", tmp_path / source)
    prepare(config)
    assert contents(tmp_path / "root") == {
        "train_ids": [shards["train"]],
        "train_caps": ["for train"],
        "dev_ids": [shards["dev"]],
        "dev_caps": ["for dev"],
        "test_ids": [shards["test"]] * 2,
        "test_caps": ["one", "two"],
        "mapping": {name: f"{name}.png" for name in shards.values()},
    }
    (image,) = read_split(config, "test").images
    assert image.read_bytes() == image_bytes(6)
    assert not warnings
    before = image.stat().st_ino
    prepare(config)
    assert image.stat().st_ino == before  # not written again


def test_names_tell_splits(tmp_path):
    for split in ("train", "val", "test"):
        sample = {"a.jpg": image_bytes(), "a.txt": split.encode()}
        write_tar(tmp_path / f"tars/{split}-000.tar", sample)
    prepare(config_for(tmp_path / "root", tmp_path / "tars"))
    found = contents(tmp_path / "root")
    assert found["dev_ids"] == ["val-000/a"]
    assert found["dev_caps"] == ["val"]


@pytest.mark.parametrize("where", ["in an image", "between members", "missing", "text"])
def test_a_bad_tar_is_counted_and_named(tmp_path, shards, where, warnings):
    path = tmp_path / "tars/00002.tar"
    sample = {"x.txt": b"caption", "y.txt": b"other", "z.png": image_bytes()}
    content = write_tar(path, sample).read_bytes()
    if where == "in an image":
        path.write_bytes(content[: 5 * 512 + 20])
    elif where == "between members":
        path.write_bytes(content[: 2 * 512])
    elif where == "text":
        path.write_text("not a tar" * 100)
    else:
        path.unlink()
    prepare(config_for(tmp_path / "root", tmp_path / "tars/{00000..00002}.tar"))
    assert "1 of 3 tars are bad: " + str(path) in warnings
    reason = next(line for line in warnings if line.startswith(f"{path}: "))
    assert reason.endswith("; 0 samples read")
    assert len(contents(tmp_path / "root")["mapping"]) == 3


def test_samples_without_an_image_or_a_caption_are_counted(tmp_path, shards, warnings):
    write_tar(
        tmp_path / "tars/00002.tar",
        {
            "a.txt": b"no image",
            "b.png": image_bytes(),
            "c.png": image_bytes(),
            "c.json": b"{",
            "d.png": image_bytes(),
            "d.json": b'{"caption": null}',
            "e.png": image_bytes(),
            "e.txt": b"\xff",
        },
    )
    prepare(config_for(tmp_path / "root", tmp_path / "tars"))
    assert "5 samples without an image or a caption" in warnings
    assert len(contents(tmp_path / "root")["mapping"]) == 3


def test_bad_images(tmp_path, shards, warnings):
    sample = {"a.png": b"no image", "a.txt": b"caption"}
    write_tar(tmp_path / "tars/00002.tar", sample)
    config = config_for(tmp_path / "root", tmp_path / "tars")
    with pytest.raises(InputError, match=r"00002\.tar, 00002/a: not a readable image"):
        prepare(config)
    assert not (tmp_path / "root/precomp").exists()  # no data set
    config.data.on_bad_image = "skip"
    prepare(config)
    assert any("left out: " in line and "00002/a" in line for line in warnings)


def test_no_sample_at_all(tmp_path, warnings):
    write_tar(tmp_path / "tars/0.tar", {"a.txt": b"caption"})
    with pytest.raises(InputError, match=r"0\.tar: no image with a caption in 1 tars"):
        prepare(config_for(tmp_path / "root", tmp_path / "tars"))


def test_names_that_lead_out_of_the_folder(tmp_path, shards):
    sample = {"../../out.png": image_bytes(), "../../out.txt": b"caption"}
    write_tar(tmp_path / "tars/00002.tar", sample)
    prepare(config_for(tmp_path / "root", tmp_path / "tars"))
    assert (tmp_path / "root/images/00002/out.png").is_file()
    assert not (tmp_path / "out.png").exists()
