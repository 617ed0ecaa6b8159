"""Hugging Face image folders, in each form of their metadata."""

import json
import sys

import pytest

from tests.helpers.roots import config_for, contents, name_in, save_image
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare

ROOT = {
    "train_ids": ["train/0.png", "train/0.png", "train/sub/1.png"],
    "train_caps": ["a dog", "again, a dog", "two cats"],
    "dev_ids": ["validation/2.png"],
    "dev_caps": ["a cow"],
    "test_ids": ["test/3.png"],
    "test_caps": ["a bee"],
    "mapping": {
        f"{name}.png": f"{name}.png"
        for name in ("train/0", "train/sub/1", "validation/2", "test/3")
    },
}
ROWS = (
    {"file_name": "train/0.png", "text": "a dog", "label": 5},
    {"file_name": "train/0.png", "text": "again, a dog", "label": 5},
    {"file_name": "train/sub/1.png", "text": "two cats", "label": None},
    {"file_name": "validation/2.png", "text": "a cow", "label": 6},
    {"file_name": "test/3.png", "text": "a bee", "label": 7},
)


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        save_image(tmp_path / "data" / row["file_name"])
    return tmp_path / "data"


def write_jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def write_csv(path, rows):
    lines = [f'{row["file_name"]},"{row["text"]}",{row["label"]}' for row in rows]
    path.write_text("\n".join(["file_name,text,label", *lines]))


def write_parquet(path, rows):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)


FORMS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("form", FORMS)
def test_one_file_for_all_splits(folder, tmp_path, form):
    FORMS[form](folder / f"metadata.{form}", ROWS)
    prepare(config_for(tmp_path / "root", folder))
    assert contents(tmp_path / "root") == ROOT


@pytest.mark.parametrize("form", FORMS)
def test_a_file_a_split(folder, tmp_path, form):
    for split in ("train", "validation", "test"):
        rows = [
            row | {"file_name": row["file_name"].removeprefix(f"{split}/")}
            for row in ROWS
            if row["file_name"].startswith(split)
        ]
        FORMS[form](folder / split / f"metadata.{form}", rows)
    prepare(config_for(tmp_path / "root", folder))
    found = contents(tmp_path / "root")
    assert found == ROOT | {"mapping": found["mapping"]}
    assert found["mapping"].items() == ROOT["mapping"].items()


def test_several_captions_and_no_split(tmp_path):
    names = [name_in(split, "{}.png") for split in ("train", "dev", "test")]
    for name in names:
        save_image(tmp_path / "data" / name)
    rows = [{"file_name": name, "captions": [f"a {name}", "b"]} for name in names]
    write_jsonl(tmp_path / "data/metadata.jsonl", rows)
    prepare(config_for(tmp_path / "root", tmp_path / "data/metadata.jsonl"))
    found = contents(tmp_path / "root")
    assert found["dev_ids"] == [names[1]]
    assert found["dev_caps"] == [f"a {names[1]}", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("5", "line 2: not a JSON object"),
        ('{"text": "a"}', "line 2: no 'file_name' that is a text"),
        ('{"file_name": "train/0.png"}', "line 2: no caption in text, caption, cap"),
        ('{"file_name": "train/0.png", "text": " "}', "line 2: no caption"),
        ('{"file_name": "train/0.png", "captions": [1]}', "line 2: no caption"),
        ('{"file_name": "../0.png", "text": "a"}', "line 2: '../0.png' is no path"),
        ('{"file_name": "train/9.png", "text": "a"}', "9.png: no such image.*line 2"),
    ],
)
def test_a_bad_line_is_named(folder, tmp_path, line, message):
    first = json.dumps(ROWS[0])
    (folder / "metadata.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(InputError, match=f"{message}"):
        prepare(config_for(tmp_path / "root", folder))
    assert not (tmp_path / "root").exists()


def test_parquet_without_its_package(folder, tmp_path, monkeypatch):
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"metadata\.parquet: the package pyarrow is"):
        prepare(config_for(tmp_path / "root", folder))


def test_damaged_parquet(folder, tmp_path):
    pytest.importorskip("pyarrow")
    (folder / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"metadata\.parquet: ") as error:
        prepare(config_for(tmp_path / "root", folder))
    assert "\n" not in str(error.value)
