"""convert_torch_weights.py as a user runs it, and main.py on what it wrote."""

import json
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import vse_jax
from tests.helpers import buckets, official, tiny
from tests.helpers.hub import serving
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch.released import checkpoint_to_run
from vse_jax.metrics_logger import read_metrics

pytestmark = pytest.mark.system

CONVERT = "convert_torch_weights.py"


def run(program, args, environment, code=0):
    done = subprocess.run(
        [sys.executable, program, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small released file: a grid model for 64-px pictures."""
    path = tmp_path_factory.mktemp("released") / "model_best.pth"
    checkpoint = official.checkpoint(
        "grid_bert",
        data_name="tiny_precomp",
        input_scale_factor=0.25,
    )
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def converted(released, environment, tmp_path_factory):
    """The workdir made from it."""
    folder = tmp_path_factory.mktemp("runs") / "W"
    args = [f"--checkpoint={released}", f"--workdir={folder}"]
    out, _ = run(CONVERT, args, environment)
    assert out == f"{folder}: tiny, grid + bert, 12 epochs, best dev rsum 431.5\n"
    return folder


def write_words(file, count):
    file.parent.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(count - 5))]
    file.write_text("\n".join(words) + "\n")
    return file


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A vocabulary of as many tokens as the released model has."""
    return write_words(tmp_path_factory.mktemp("words") / "words.txt", 40)


def test_a_vocabulary_that_fits_is_kept_and_no_other(
    released, converted, tmp_path, monkeypatch
):
    assert not (converted / "vocab.txt").exists()  # bert-base-uncased's is larger
    vocabulary = write_words(tmp_path / "data" / "vocab" / "words.txt", 40)
    monkeypatch.chdir(tmp_path)
    checkpoint_to_run(released, tmp_path / "W")
    assert (tmp_path / "W" / "vocab.txt").read_text() == vocabulary.read_text()
    write_words(vocabulary, 39)
    checkpoint_to_run(released, tmp_path / "V")
    assert not (tmp_path / "V" / "vocab.txt").exists()


def test_a_model_without_its_vocabulary_demands_it(
    released, converted, tiny_root, environment, tmp_path
):
    args = [f"--checkpoint={released}", f"--workdir={tmp_path / 'W'}"]
    _, err = run(CONVERT, args, environment)
    assert (
        f"{tmp_path / 'W'}: no vocabulary of this model's 40 tokens is here: convert "
        "again with --vocab=FILE, or use the model with --config.text.vocab=FILE\n"
    ) in err
    args = [f"--workdir={tmp_path / 'W'}", f"--config.data.root={tiny_root}"]
    _, err = run("main.py", [*args, "--mode=eval"], environment, code=1)
    assert err.splitlines()[-1] == (
        f"error: {tiny_root.parent}/vocab/vocab.txt: 32 tokens, but "
        "config.text.vocab_size is 40; name the model's own vocabulary with "
        "config.text.vocab"
    )
    with pytest.raises(
        InputError, match=r"30522 tokens, but config.text.vocab_size is"
    ):
        vse_jax.load(tmp_path / "W")


def test_its_vocabulary_can_be_named_and_is_kept(
    released, words, environment, tmp_path
):
    args = [f"--checkpoint={released}", f"--workdir={tmp_path / 'W'}"]
    _, err = run(CONVERT, [*args, f"--vocab={words}"], environment)
    assert "vocabulary" not in err
    assert (tmp_path / "W" / "vocab.txt").read_bytes() == words.read_bytes()
    model = vse_jax.load(tmp_path / "W")
    assert model.encode_captions(["1 2 3"]).shape == (1, model.dim)
    other = write_words(tmp_path / "other.txt", 41)
    args = [f"--checkpoint={released}", f"--workdir={tmp_path / 'V'}"]
    _, err = run(CONVERT, [*args, f"--vocab={other}"], environment, code=1)
    assert err == f"error: {other}: 41 tokens, but config.text.vocab_size is 40\n"
    assert not (tmp_path / "V").exists()


def test_eval_and_embed_need_only_the_workdir_and_data(
    converted, words, tiny_root, environment
):
    args = [f"--workdir={converted}", f"--config.data.root={tiny_root}"]
    args.append(f"--config.text.vocab={words}")  # bert-base-uncased's were found
    run("main.py", [*args, "--mode=eval"], environment)
    metrics = json.loads((converted / "eval_test.json").read_text())
    assert metrics["captions"] == 160
    run("main.py", [*args, "--mode=embed"], environment)
    embeddings = np.load(converted / "embeddings" / "test" / "images.npy")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def region_root(tiny_root, tmp_path_factory):
    """The captions of `tiny_root`, with random regions instead of pictures."""
    root = tmp_path_factory.mktemp("regions") / "tiny"
    shutil.copytree(tiny_root / "precomp", root / "precomp")
    shutil.copytree(tiny_root.parent / "vocab", root.parent / "vocab")
    for split, count in tiny.SPLITS.items():
        regions = np.random.default_rng(0).random((count, 5, 128), np.float32)
        np.save(root / "precomp" / f"{split}_ims.npy", regions)
    return root


def test_training_goes_on_where_the_official_program_stopped(
    region_root, words, environment, tmp_path
):
    checkpoint = official.checkpoint(
        "region_bert",
        data_name="tiny_precomp",
        batch_size=16,
        num_epochs=4,
        lr_update=3,
    )
    torch.save(checkpoint | {"epoch": 3}, tmp_path / "model.pth")
    folder = tmp_path / "W"
    checkpoint_to_run(tmp_path / "model.pth", folder, words)
    args = [f"--workdir={folder}", f"--config.data.root={region_root}"]
    _, err = run("main.py", [*args, "--config.log_every=10"], environment)
    assert "goes on after epoch 3" in err
    rows = read_metrics(folder)
    # 96 × 5 pairs in batches of 16: the fourth epoch is the steps from 91 to 120.
    rates = {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}
    assert rates == pytest.approx(dict.fromkeys((100, 110, 120), 5e-5))
    assert [row["step"] for row in rows if "eval/dev/rsum" in row] == [90, 120]
    # From now on it is a run like any other.
    assert (folder / "checkpoints" / "120").is_dir()


@pytest.mark.parametrize("place", ["disk", "gs", "s3"])
def test_back_to_pytorch_is_bit_equal(
    place, released, words, tiny_root, services, environment, tmp_path
):
    there, workdir = environment | buckets.environment(**services), tmp_path / "W"
    if place != "disk":
        workdir = f"{place}://{buckets.BUCKET}/converted"
    run(CONVERT, [f"--checkpoint={released}", f"--workdir={workdir}"], there)
    args = [f"--workdir={workdir}", f"--to-torch={tmp_path / 'back.pth'}"]
    run(CONVERT, args, there)
    args = [f"--workdir={workdir}", f"--config.data.root={tiny_root}"]
    args += [f"--config.text.vocab={words}", "--config.num_epochs=13"]
    _, err = run("main.py", [*args, "--config.batch_size=8"], there)
    assert "converted weights; goes on after epoch 12" in err
    found = torch.load(tmp_path / "back.pth", weights_only=False)
    expected = torch.load(released, weights_only=False)
    for ours, theirs in zip(found["model"], expected["model"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in ("epoch", "best_rsum", "Eiters"):
        assert found[name] == expected[name]
    expected["opt"].embed_size = 64  # small here; the tensors decide
    assert found["opt"] == expected["opt"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give one of --checkpoint, --hub, --to-torch, --backbone"),
        (["--checkpoint=a", "--backbone=b"], "give one of --checkpoint"),
        (["--checkpoint=absent.pth"], "--checkpoint needs --workdir"),
        (["--backbone=b", "--kind=wsl"], "--backbone needs --output"),
        (["--hub=a/b/c", "--workdir=W", "--kind=wsl"], "--hub goes without --kind"),
        (["--hub=a/b", "--workdir=W"], "--hub=a/b: write OWNER/REPOSITORY/FOLDER"),
        (["--to-torch=f", "--workdir=/absent"], "/absent/config.json: no saved config"),
        (["--to-torch=f", "--workdir=W", "--vocab=v"], "--to-torch goes without --vo"),
        (["--nope=1"], "nope"),
    ],
)
def test_bad_flags_are_one_line(args, message, environment):
    _, err = run(CONVERT, args, environment, code=1)
    assert message in err
    assert re.fullmatch(r"error: [^\n]+\n", err)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", None])
def test_a_bad_file_leaves_nothing_behind(content, tmp_path):
    file = tmp_path / "model.pth"
    if content is None:
        towers = [{"fc.weight": torch.ones(1)}, {"a": torch.ones(1)}]
        torch.save({"model": towers}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pth: "):
        checkpoint_to_run(file, tmp_path / "W")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_workdir_that_exists_is_left_alone(released, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is already there"):
        checkpoint_to_run(released, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def hub(released, environment, tmp_path):
    """Environment whose Hub is a stand-in with one released model."""
    files = {"tiny_butd_grid_bert/model_best.pth": released.read_bytes()}
    with serving({"cccjc/vse-infty": files}) as (address, _):
        yield environment | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}


def test_a_released_model_comes_from_the_hub(hub, tmp_path):
    name = "cccjc/vse-infty/tiny_butd_grid_bert"
    args = [f"--hub={name}", f"--workdir={tmp_path / 'W'}"]
    out, _ = run(CONVERT, args, hub)
    assert "tiny, grid + bert" in out
    args = [f"--hub={name}_absent", f"--workdir={tmp_path / 'V'}"]
    _, err = run(CONVERT, args, hub, code=1)
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"error: --hub={name}_absent: ")
    assert "Traceback" not in err
    assert not (tmp_path / "V").exists()


@pytest.mark.slow
def test_a_full_size_checkpoint_takes_a_minute_and_3_gb_at_most(environment, tmp_path):
    towers = [
        {
            key: torch.rand(shape) if dtype == "float32" else torch.tensor(7)
            for key, (shape, dtype) in tower.items()
            if not re.search(r"backbone\.(base|top)\.", key)
        }
        for tower in official.layout("grid_bert")
    ]
    checkpoint = official.checkpoint("grid_bert") | {"model": towers}
    file = tmp_path / "model.pth"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    args = [f"--checkpoint={file}", f"--workdir={tmp_path / 'W'}"]
    start = time.monotonic()
    run(CONVERT, args, environment)
    assert time.monotonic() - start < 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kB, of any child
    assert peak < 3e6
