"""--mode=export: what it writes, checks, repairs and refuses."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.programs import MAIN, one_line_error, run
from vse_jax.base.errors import InputError
from vse_jax.commands.export import export
from vse_jax.data import dataset
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image
from vse_jax.data.records import FOLDER, decode_example, read_export


@pytest.fixture(scope="module")
def first_export(tiny_root, tmp_path_factory):
    """A root with its export, written by the program, and what that printed."""
    root = tmp_path_factory.mktemp("export") / "tiny"
    shutil.copytree(tiny_root, root)
    done = subprocess.run(
        [*MAIN, f"--config=tests/helpers/tiny.py:{root}", "--mode=export"],
        env={"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, done.stdout


@pytest.fixture
def config(first_export, tiny_config, tmp_path):
    """A config over a copy of the exported root."""
    shutil.copytree(first_export[0], tmp_path / "tiny")
    tiny_config.data.root = str(tmp_path / "tiny")
    return tiny_config


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the pictures."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }


def test_says_what_it_wrote(first_export):
    root, out = first_export
    assert len(out.splitlines()) == 3
    assert f"{root / FOLDER}: train: 96 images, shards: 1, 0.1 MB, written" in out
    assert (root / FOLDER / "checksums.json").is_file()


def test_records_hold_the_files(config):
    """The image file's very bytes, the split's captions."""
    from array_record.python.array_record_module import ArrayRecordReader

    split = read_split(config, "test")
    folder = Path(config.data.root) / FOLDER
    reader = ArrayRecordReader(
        str(folder / "image_text-test.array_record-00000-of-00001")
    )
    found = [decode_example(data) for data in reader.read_all()]
    assert found[3]["image"] == [split.images[3].read_bytes()]
    assert [bytes(*record["id"]).decode() for record in found] == split.image_ids
    captions = [bytes(text).decode() for record in found for text in record["captions"]]
    assert captions == split.captions


_USE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
example = builder.as_data_source("test")[5]
np.save(sys.argv[2], example[sys.argv[3]])
print(example["id"].decode(), *(c.decode() for c in example["captions"]), sep="\\n")
assert sorted(builder.info.splits) == sys.argv[4:]
assert "tensorflow" not in sys.modules
"""


def opened_by_tfds(root, feature, splits, tmp_path):
    """(id and captions of the sixth test image, a feature of it), read by TFDS."""
    folder, target = str(root / FOLDER), str(tmp_path / "feature.npy")
    done = subprocess.run(
        [sys.executable, "-c", _USE, folder, target, feature, *splits],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return done.stdout.splitlines(), np.load(target)


def test_tfds_opens_it_without_our_code_and_tensorflow(config, tmp_path):
    root = Path(config.data.root)
    texts, image = opened_by_tfds(root, "image", ["dev", "test", "train"], tmp_path)
    split = read_split(config, "test")
    assert texts == [split.image_ids[5], *split.captions[25:30]]
    np.testing.assert_array_equal(image, load_image(split.images[5]))


def test_tfds_opens_splits_of_different_numbers_of_regions(tiny_config, tmp_path):
    root = tmp_path / "tiny"
    for split, sets in (("dev", 5), ("test", 6)):
        rows = [(str(i), ["a caption"]) for i in range(6)]
        dataset.write_root(root, {split: rows}, {})
        regions = np.random.default_rng(sets).random((6, sets, 8), np.float32)
        np.save(root / f"precomp/{split}_ims.npy", regions)
    (root / "id_mapping.json").unlink()
    tiny_config.data.root, tiny_config.image.kind = str(root), "region"
    tiny_config.image.feature_dim = 8
    export(tiny_config)
    texts, found = opened_by_tfds(root, "regions", ["dev", "test"], tmp_path)
    assert texts == ["5", "a caption"]
    np.testing.assert_array_equal(found, regions[5])
    tiny_config.data.format = "tfds"
    np.testing.assert_array_equal(
        read_split(tiny_config, "test").regions[5], regions[5]
    )
    assert read_split(tiny_config, "dev").regions.shape == (6, 5, 8)


@pytest.mark.parametrize("name", ["all", "val 1k", "val.1k"])
def test_names_that_tfds_would_misread(name, config):
    precomp = Path(config.data.root) / "precomp"
    for part in ("ids", "caps"):
        shutil.copy(precomp / f"dev_{part}.txt", precomp / f"{name}_{part}.txt")
    with pytest.raises(InputError, match=f"split '{name}': no name that TFDS takes"):
        export(config)


def test_again_it_only_checks(config, capsys):
    root = Path(config.data.root)
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    export(config)
    out = capsys.readouterr().out
    assert out.count("checked") == 3
    assert "written" not in out
    assert contents(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, Path.unlink, lambda path: path.write_bytes(b"short")],
    ids=["flipped", "missing", "truncated"],
)
def test_again_it_repairs(config, damage, capsys):
    folder = Path(config.data.root) / FOLDER
    kept = folder / read_export(folder)["dev"].shards[0].name
    before = kept.stat()
    damage(folder / read_export(folder)["test"].shards[0].name)
    export(config)
    out = capsys.readouterr().out
    assert (out.count("written"), out.count("checked")) == (1, 2)
    assert kept.stat().st_ino == before.st_ino  # not copied either
    export(config)
    assert "written" not in capsys.readouterr().out
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_changed_pictures_are_exported_again(config, capsys):
    picture = read_split(config, "test").images[3]
    other = read_split(config, "test").images[4]
    picture.write_bytes(other.read_bytes())
    export(config)
    assert capsys.readouterr().out.count("written") == 1
    config.data.format = "tfds"
    assert read_split(config, "test").images[3].data == other.read_bytes()


def test_to_another_folder(config, tmp_path):
    config.data.export_to = str(tmp_path / "elsewhere")
    export(config)
    export(config)
    folder = read_split(config, "dev")
    config.data.root, config.data.format = config.data.export_to, "tfds"
    split = read_split(config, "dev")
    assert split.captions == folder.captions
    assert split.images[9].data == folder.images[9].read_bytes()


_KILL = """
import os, signal, sys
from tests.helpers import tiny
from vse_jax.commands import export as command
from vse_jax.config import typed
count, encode = 0, command.encode_example
def encode_or_die(record):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(record)
command.encode_example = encode_or_die
command.export(typed(tiny.get_config(sys.argv[1])))
"""


def test_a_killed_export_looks_unfinished(tiny_root, tiny_config, tmp_path):
    root = tmp_path / "tiny"
    shutil.copytree(tiny_root, root)
    # dev is written, test half.
    program = [sys.executable, "-c", _KILL, str(root), "50"]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL

    tiny_config.data.root, tiny_config.data.format = str(root), "tfds"
    with pytest.raises(InputError, match=r"checksums.json: No such file"):
        read_split(tiny_config, "test")
    folder = root / FOLDER
    leftovers = list(folder.parent.iterdir())
    assert leftovers

    export(tiny_config)
    assert list(folder.parent.iterdir()) == [folder]
    images = read_split(tiny_config, "test").images
    tiny_config.data.format = "folder"
    for ours, theirs in zip(
        images, read_split(tiny_config, "test").images, strict=True
    ):
        assert ours.data == theirs.read_bytes()


def test_a_full_disk_is_one_line(config, environment):
    # Files may not grow past 64 kB: writing fails as it does on a full disk.
    shutil.rmtree(Path(config.data.root) / FOLDER)
    small = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *MAIN]
    args = [f"--config=tests/helpers/tiny.py:{config.data.root}", "--mode=export"]
    line = one_line_error(args, environment, program=small)
    assert f"/{FOLDER}/" in line
    assert "could not be written" in line
    assert not any(Path(config.data.root, "tfds").rglob("*.json"))
    run(args, environment)


def test_another_kind_is_refused(config):
    for split in ("train", "dev", "test"):
        images = len(read_split(config, split).image_ids)
        regions = np.zeros((images, 6, 8), np.float32)
        np.save(Path(config.data.root) / f"precomp/{split}_ims.npy", regions)
    config.image.kind, config.image.feature_dim = "region", 8
    before = contents(Path(config.data.root))
    with pytest.raises(
        InputError, match=r"checksums.json: an export of image.kind 'grid'"
    ):
        export(config)
    assert contents(Path(config.data.root)) == before


def test_refused(config, first_export):
    other_root = first_export[0]
    config.data.export_to = "gs://bucket"
    with pytest.raises(InputError, match=r"gs://bucket: export to a local folder"):
        export(config)
    config.data.export_to = str(other_root)
    with pytest.raises(InputError, match=r"not from .*another config.data.export_to"):
        export(config)
    config.image.kind = "region"
    with pytest.raises(InputError, match=r"precomp: no split with _ids.txt"):
        export(config)


@pytest.mark.parametrize(
    "name", ["checksums.json", "dataset_info.json", "features.json"]
)
def test_a_damaged_json_file_is_written_again(config, name):
    path = Path(config.data.root) / FOLDER / name
    good = path.read_bytes()
    path.write_bytes(good[:50])
    export(config)
    assert json.loads(path.read_bytes()) == json.loads(good)
