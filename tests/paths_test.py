"""`~` and relative paths in programs and in Python, from any folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vse_jax
from tests.helpers import official, tiny
from vse_jax.data.records import FOLDER

pytestmark = pytest.mark.system

HERE = Path.cwd()
TRAIN = (
    *("--config.max_steps=1", "--config.batch_size=8", "--config.image.drop=0.0"),
    "--config.data.dev_captions=20",
)


@pytest.fixture(scope="module")
def home(environment, tmp_path_factory) -> Path:
    """A home folder with data, pictures and a run, all named by `~/…`."""
    folder = tmp_path_factory.mktemp("home")
    tiny.write_root(folder / "data" / "tiny")
    (folder / "my pictures").mkdir()
    for colour in ("red", "blue"):
        tiny.draw(colour, "bar", "left").save(folder / "my pictures" / f"{colour}.png")
    (folder / "tiny.py").write_bytes((HERE / "tests/helpers/tiny.py").read_bytes())
    data = (
        "--config=~/tiny.py:~/data/tiny",
        "--config.text.vocab=~/data/vocab/vocab.txt",
    )
    program(folder, folder / "data", environment, *data, "--workdir=~/run", *TRAIN)
    return folder


def program(home, folder, environment, *arguments, file="main.py") -> str:
    """What a program prints that is started in `folder`."""
    done = subprocess.run(
        [sys.executable, HERE / file, *arguments],
        cwd=folder,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_writes_into_the_home_folder(home):
    assert not (home / "data" / "~").exists()
    saved = json.loads((home / "run" / "config.json").read_text())
    assert saved["data"]["root"] == str(home / "data" / "tiny")
    assert (home / "run" / "eval_test.json").exists()


def test_a_run_by_relative_paths_is_used_from_another_folder(
    home, environment, tmp_path
):
    relative = ("--config=../tiny.py:tiny", "--workdir=../relative", *TRAIN)
    program(home, home / "data", environment, *relative)
    for name in ("eval_test.json", "retrieval.png"):
        (home / "relative" / name).unlink()
    program(home, tmp_path, environment, "--workdir=~/relative", "--mode=eval")
    assert (home / "relative" / "eval_test.json").exists()


def test_evaluation_of_an_ensemble_on_other_data(home, environment, tmp_path):
    program(
        *(home, tmp_path, environment, "--workdir=~/both", "--mode=eval"),
        *("--config=~/run/config.json", "--config.eval.ensemble=~/run, ~/run"),
        "--config.data.root=~/data/tiny",
    )
    metrics = json.loads((home / "both" / "eval_test.json").read_text())
    assert metrics["ensemble"] == [str(home / "run")] * 2


def test_preparing_and_exporting(home, environment, tmp_path):
    tiny.draw("green", "bar", "left").save(home / "my pictures" / "green.png")
    text = (
        "image,caption,split\n"
        "red.png,a red bar,train\n"
        "blue.png,a blue bar,dev\n"
        "green.png,a green bar,test\n"
    )
    (home / "my pictures" / "captions.csv").write_text(text)
    program(
        *(home, tmp_path, environment, "--config=~/tiny.py", "--mode=prepare"),
        *("--config.data.source=~/my pictures", "--config.data.root=~/mine"),
    )
    assert (home / "mine" / "precomp" / "train_ids.txt").exists()
    program(
        *(home, tmp_path, environment, "--config=~/tiny.py", "--mode=export"),
        *("--config.data.root=~/mine", "--config.data.export_to=~/records"),
        "--config.data.format=tfds",
    )
    assert (home / "records" / FOLDER / "checksums.json").exists()
    assert not list(tmp_path.iterdir())


def test_searching(home, environment, tmp_path):
    asked = (
        home,
        tmp_path,
        environment,
        "--workdir=~/run",
        "--config.search.index=~/i",
    )
    program(*asked, "--mode=index", "--config.search.pictures=~/my pictures")
    assert (home / "i" / "index.sqlite").exists()
    for query in (
        "--config.search.like=~/my pictures/red.png",
        "--config.search.query='~/my pictures/red.png' - 0.1 * 'blue'",
    ):
        out = program(*asked, "--mode=search", query, "--config.search.format=paths")
        assert out.splitlines()[0] == str(home / "my pictures" / "red.png")
    program(
        *(*asked, "--mode=explain", "--config.search.query=a red bar"),
        "--config.search.like=~/my pictures/red.png",
    )
    assert (home / "run" / "explanation.png").exists()
    assert not list(tmp_path.iterdir())


def test_conversion(home, environment, tmp_path):
    convert = "convert_torch_weights.py"
    asked = (home, tmp_path, environment)
    checkpoint = official.checkpoint("region_bert")
    torch.save(checkpoint, home / "best.pth", _use_new_zipfile_serialization=False)
    program(*asked, "--checkpoint=~/best.pth", "--workdir=~/back", file=convert)
    program(*asked, "--workdir=~/back", "--to-torch=~/again.pth", file=convert)
    assert (home / "again.pth").exists()
    assert not list(tmp_path.iterdir())


def test_python(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    model = vse_jax.load("~/run", {"text.vocab": "~/data/vocab/vocab.txt"})
    picture = home / "my pictures" / "red.png"
    expected = model.encode_images([picture])
    for named in ("~/my pictures/red.png", Path("~/my pictures/red.png")):
        np.testing.assert_array_equal(model.encode_images([named]), expected)
        model.image_attributions(named, expected[0])
        model.explain(named, "a red bar")
    monkeypatch.chdir(home)
    again = vse_jax.load("run", {"text.vocab": "data/vocab/vocab.txt"})
    found = again.encode_images(["my pictures/red.png"])
    np.testing.assert_array_equal(found, expected)
