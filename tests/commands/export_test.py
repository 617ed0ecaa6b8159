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
from vse_jax.data.records.index import FOLDERS, FORMATS, read_index

INDICES = [
    f"{FOLDERS[form]}/{split}.json"
    for form in FORMATS
    for split in ("dev", "test", "train")
]


@pytest.fixture(scope="module")
def first_export(tiny_root, tmp_path_factory):
    """A root with its export, written by the program, and what that printed."""
    root = tmp_path_factory.mktemp("export") / "tiny"
    shutil.copytree(tiny_root, root)
    done = subprocess.run(
        [*MAIN, f"--config=tests/helpers/tiny.py:{root}", "--mode=export"],
        env={"PYTHONWARNINGS": "error,ignore:the load_module:DeprecationWarning"},
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
    assert len(out.splitlines()) == 6
    assert f"{root}/array_record: train: 96 images, shards: 1, 0.1 MB, written" in out
    assert all((root / name).is_file() for name in INDICES)


def test_records_hold_the_files(config):
    """Read without our reader: the picture file's very bytes, the split's captions."""
    import msgpack
    from array_record.python.array_record_module import ArrayRecordReader

    split = read_split(config, "test")
    shard = Path(config.data.root) / "array_record/test-00000-of-00001.array_record"
    reader = ArrayRecordReader(str(shard))
    found = [msgpack.unpackb(data) for data in reader.read_all()]
    assert found[3]["image"] == split.images[3].read_bytes()
    assert [record["id"] for record in found] == split.image_ids
    assert [text for record in found for text in record["captions"]] == split.captions


def test_again_it_only_checks(config, capsys):
    root = Path(config.data.root)
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    export(config)
    out = capsys.readouterr().out
    assert out.count("checked") == 6
    assert "written" not in out
    assert contents(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, Path.unlink, lambda path: path.write_bytes(b"short")],
    ids=["flipped", "missing", "truncated"],
)
def test_again_it_repairs(config, form, damage, capsys):
    folder = Path(config.data.root) / FOLDERS[form]
    index = read_index(folder / "test.json")
    damage(folder / index.shards[0].name)
    export(config)
    assert "written" in capsys.readouterr().out
    export(config)
    assert "written" not in capsys.readouterr().out


def test_changed_pictures_are_exported_again(config, capsys):
    picture = read_split(config, "test").images[3]
    other = read_split(config, "test").images[4]
    picture.write_bytes(other.read_bytes())
    folder = Path(config.data.root) / FOLDERS["array_record"]
    another = folder / "test-2-00000-of-00001.array_record"  # of a split 'test-2'
    another.touch()
    export(config)
    assert another.exists()
    # TFDS writes all splits.
    assert capsys.readouterr().out.count("written") == 1 + 3
    config.data.format = "array_record"
    assert read_split(config, "test").images[3].data == other.read_bytes()


def test_one_format_to_another_folder(config, tmp_path):
    config.data.export_to = str(tmp_path / "elsewhere")
    config.data.format = "array_record"
    export(config)
    export(config)
    assert not (tmp_path / "elsewhere/tfds").exists()
    folder = read_split(config, "dev")
    config.data.root = config.data.export_to
    split = read_split(config, "dev")
    assert split.captions == folder.captions
    assert split.images[9].data == folder.images[9].data


_KILL = """
import os, signal, sys
from tests.helpers import tiny
from vse_jax.commands.export import export
from vse_jax.data import export as writer
count, read = 0, writer._picture_bytes
def read_or_die(path):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)
writer._picture_bytes = read_or_die
export(tiny.get_config(sys.argv[1]))
"""


@pytest.mark.parametrize("form", FORMATS)
def test_a_killed_export_looks_unfinished(tiny_root, tiny_config, form, tmp_path):
    root = tmp_path / "tiny"
    shutil.copytree(tiny_root, root)
    # dev is written, test half.
    at = {"array_record": 50, "tfds": 160 + 50}[form]
    program = [sys.executable, "-c", _KILL, str(root), str(at)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL

    tiny_config.data.root, tiny_config.data.format = str(root), form
    with pytest.raises(InputError, match=r"test.json: No such file"):
        read_split(tiny_config, "test")
    leftovers = [*root.rglob(".*.part"), *root.rglob("*incomplete*")]
    assert leftovers

    export(tiny_config)
    assert not any(path.exists() for path in leftovers)
    pictures = read_split(tiny_config, "test").images
    tiny_config.data.format = "folder"
    for ours, theirs in zip(
        pictures, read_split(tiny_config, "test").images, strict=True
    ):
        assert ours.data == theirs.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_line(config, form, environment):
    # Files may not grow past 64 kB: writing fails as it does on a full disk.
    shutil.rmtree(Path(config.data.root) / FOLDERS[form])
    small = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *MAIN]
    args = [f"--config=tests/helpers/tiny.py:{config.data.root}", "--mode=export"]
    line = one_line_error(args, environment, program=small)
    assert f"/{form}/" in line
    assert "could not be written" in line
    assert not any((Path(config.data.root) / FOLDERS[form]).glob("*.json"))
    run(args, environment)


def test_another_kind_is_refused(config):
    for split in ("train", "dev", "test"):
        images = len(read_split(config, split).image_ids)
        regions = np.zeros((images, 6, 8), np.float32)
        np.save(Path(config.data.root) / f"precomp/{split}_ims.npy", regions)
    config.image.kind, config.image.feature_dim = "region", 8
    before = contents(Path(config.data.root))
    with pytest.raises(InputError, match=r"dev.json: an export of image.kind 'grid'"):
        export(config)
    assert contents(Path(config.data.root)) == before


def test_refused(config, first_export):
    other_root = first_export[0]
    config.data.format = "tar"
    with pytest.raises(InputError, match=r"config.data.format: 'tar' is none of"):
        export(config)
    config.data.format = "folder"
    config.data.export_to = "gs://bucket"
    with pytest.raises(InputError, match=r"gs://bucket: export to a local folder"):
        export(config)
    config.data.export_to = str(other_root)
    with pytest.raises(InputError, match=r"not from .*another config.data.export_to"):
        export(config)
    config.image.kind = "region"
    with pytest.raises(InputError, match=r"precomp: no split with _ids.txt"):
        export(config)


def test_tfds_wants_one_shape(tiny_config, tmp_path):
    for split, sets in (("dev", 5), ("test", 6)):
        rows = [(str(i), ["a caption"]) for i in range(3)]
        dataset.write_root(tmp_path, {split: rows}, {})
        regions = np.zeros((3, sets, 8), np.float32)
        np.save(tmp_path / f"precomp/{split}_ims.npy", regions)
    tiny_config.data.root, tiny_config.image.kind = str(tmp_path), "region"
    tiny_config.image.feature_dim = 8
    (tmp_path / "id_mapping.json").unlink()
    with pytest.raises(InputError, match=r"different region features \[\(5, 8\), \(6"):
        export(tiny_config)
    tiny_config.data.format = "array_record"
    assert read_split(tiny_config, "test").regions[2].shape == (6, 8)


def test_a_damaged_index_is_written_again(config):
    path = Path(config.data.root) / "array_record/dev.json"
    good = path.read_bytes()
    path.write_bytes(good[:50])
    export(config)
    assert json.loads(path.read_bytes()) == json.loads(good)
