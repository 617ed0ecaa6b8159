"""--mode=push: a folder that others load, and the way to the Hub and back."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import vse_jax
from tests.helpers import siglip, tiny
from tests.helpers.drafts import draft
from tests.helpers.hub import READER, WRITER, serving
from tests.helpers.programs import one_line_error
from tests.helpers.programs import run as run_program
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.commands.push import push

CAPTIONS = ["a red bar at the left", "a picture of a blue circle"]
NAME = "someone/tiny-model"

# Loads a run and what was pushed of it: the same bits, and nothing but known files.
LOAD = """
import sys
import numpy as np
import vse_jax
here, there = vse_jax.load(sys.argv[1]), vse_jax.load(sys.argv[2])
pictures, captions = sys.argv[3:5], sys.argv[5:]
assert np.array_equal(here.encode_images(pictures), there.encode_images(pictures))
assert np.array_equal(here.encode_captions(captions), there.encode_captions(captions))
assert here.fingerprint == there.fingerprint
print(there.name)
"""
# Prints the line with which the Hub's part of loading is refused; without JAX.
FETCH = """
import sys
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.folder import fetch
try:
    print(fetch(sys.argv[1]))
except InputError as error:
    print("error:", error)
"""


@pytest.fixture(scope="module")
def workdir(tiny_root, tmp_path_factory):
    """A run with parameters of all kinds: statistics, scalars, those of its loss."""
    config = draft(tiny.get_config(str(tiny_root)))
    config.image.pool, config.loss.name = "gem", "infonce"
    config.search.token = "secret"
    config.text.weights = "/home/somebody/bert"
    folder = write_run(config, tmp_path_factory.mktemp("runs") / "tiny-run")
    recalls = {"r1": 12.34, "r5": 20.0, "r10": 30.0, "medr": 1.0, "meanr": 2.0}
    metrics = {"images": 32, "captions": 160, "i2t": recalls, "t2i": recalls}
    (folder / "eval_test.json").write_text(json.dumps(metrics | {"rsum": 124.68}))
    sizes = {"train": {"images": 96, "captions": 480}}
    data = {"data": {"root": "/home/somebody", **sizes}}
    (folder / "run.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def shared(workdir):
    """Its folder for others, as `--mode=push` without a repository writes it."""
    config = draft(vse_jax.load(workdir)._config)
    config.hub = draft().hub
    push(config, workdir, None)
    return workdir / "share"


def test_what_others_get_is_the_model_and_nothing_else(workdir, shared, tiny_root):
    names = {file.name for file in shared.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt", "README.md"}
    for file in shared.iterdir():
        assert b"secret" not in file.read_bytes()
        assert b"somebody" not in file.read_bytes()
    arrays = safetensors.numpy.load_file(shared / "model.safetensors")
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}
    assert arrays["params/image/gpool/log_p"].shape == ()
    assert "batch_stats/image/backbone/layer1/0/bn1/mean" in arrays
    vocabulary = (tiny_root.parent / "vocab" / "vocab.txt").read_bytes()
    assert (shared / "vocab.txt").read_bytes() == vocabulary


def test_the_card_is_written_from_the_run(shared):
    import yaml

    card = (shared / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "vse_jax"
    (entry,) = header["model-index"]
    scores = {m["type"]: m["value"] for m in entry["results"][0]["metrics"]}
    assert scores["i2t_r1"] == 12.34
    assert scores["rsum"] == 124.68
    assert entry["results"][0]["dataset"]["split"] == "test"
    assert "license" not in header
    assert "# license: TO FILL IN" in card
    assert "| train | 96 | 480 |" in card
    assert "| `image.pool` | `gem` | `gpo` |" in card
    assert "| best epoch | 1, rsum 1.0 on dev |" in card
    assert "pretrained weights of the text encoder, `bert`" in card
    assert 'vse_jax.load("hf://USER/NAME")' in card


def test_a_changed_card_is_kept_and_another_written_anew(workdir, shared):
    config = draft(vse_jax.load(workdir)._config)
    config.hub = draft().hub
    config.hub.license = "cc-by-4.0"
    card = shared / "README.md"
    push(config, workdir, None)
    assert "license: cc-by-4.0" in card.read_text()
    card.write_text(card.read_text().replace("**TO FILL IN**", "mine"))
    config.hub.license = "mit"
    push(config, workdir, None)
    assert "cc-by-4.0" in card.read_text()
    assert "mine" in card.read_text()
    card.unlink()


def test_an_older_evaluation_is_not_the_models(workdir, tmp_path, caplog):
    from vse_jax.checkpoints.share import _evaluations

    file = tmp_path / "eval_test.json"
    file.write_text((workdir / "eval_test.json").read_text())
    assert _evaluations(tmp_path, file.stat().st_mtime - 1).keys() == {"test"}
    assert _evaluations(tmp_path, file.stat().st_mtime + 1) == {}
    assert "older than the best checkpoint" in caplog.text


@pytest.fixture
def pushed(workdir, environment, tmp_path):
    """A stand-in for the Hub: (environment of a writer, what it serves)."""
    with serving({}) as (address, handler):
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        yield environment | hub | {"HF_TOKEN": WRITER}, handler


def load(environment, here, there, pictures) -> str:
    """What LOAD prints of the model `here` and its equal on the Hub."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, here, there, *pictures, *CAPTIONS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pushed_model_is_loaded_with_the_same_bits(workdir, pushed, tiny_root):
    environment, hub = pushed
    args = [f"--workdir={workdir}", "--mode=push", f"--repo={NAME}"]
    out, _ = run_program([*args, "--config.hub.private=True"], environment)
    assert out.splitlines()[-1].endswith(f'{NAME}: vse_jax.load("hf://{NAME}")')
    assert hub.private == {NAME}
    files = hub.repositories[NAME]
    assert files.keys() == {
        *("config.json", "model.safetensors", "vocab.txt", "README.md")
    }
    assert f'vse_jax.load("hf://{NAME}")' in files["README.md"].decode()
    files["../outside.py"] = files["modeling.py"] = b"raise SystemExit"

    pictures = sorted((tiny_root / "images").iterdir())[:2]
    reader = environment | {"HF_TOKEN": READER}
    assert load(reader, workdir, f"hf://{NAME}@main", pictures) == f"{NAME}@main\n"
    cache = environment["HF_HOME"]
    fetched = {file for _, _, files in os.walk(cache) for file in files}
    assert "modeling.py" not in fetched
    assert "model.safetensors" in fetched


def test_a_published_siglip_comes_from_the_hub(pushed, tiny_root, tmp_path):
    environment, hub = pushed
    folder = siglip.write_folder(tmp_path / "siglip", siglip.peer())
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.repositories["google/siglip-tiny"] = files
    pictures = sorted((tiny_root / "images").iterdir())[:2]
    load(environment, folder, "hf://google/siglip-tiny", pictures)


@pytest.mark.parametrize(
    ("token", "line"),
    [
        (None, "not logged in: log in with `hf auth login`, or set HF_TOKEN"),
        (READER, "no permission: your token has to be one that may write there"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(workdir, pushed, token, line):
    environment, hub = pushed
    environment.pop("HF_TOKEN")
    if token:
        environment["HF_TOKEN"] = token
    args = [f"--workdir={workdir}", "--mode=push", f"--repo={NAME}"]
    found = one_line_error(args, environment)
    assert found.startswith(f"error: --repo={NAME}: {line} ("), found
    assert hub.repositories == {}


def fetch(address, environment) -> str:
    run = subprocess.run(
        [sys.executable, "-c", FETCH, address],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.count("\n") == 1
    return run.stdout.strip()


def test_what_the_hub_refuses_is_one_line(pushed):
    environment, hub = pushed
    absent = fetch("hf://someone/absent", environment)
    assert absent.startswith(
        "error: hf://someone/absent: there is no such repository, or it is private: "
        "log in with `hf auth login`, or set HF_TOKEN ("
    )
    hub.repositories["someone/other"] = {"README.md": b"no model"}
    found = fetch("hf://someone/other@v2", environment)
    assert "hf://someone/other@v2: there is no such revision (" in found
    found = fetch("hf://someone/other", environment)
    assert found == (
        "error: hf://someone/other: holds no config.json: not a model for vse_jax"
    )
    found = fetch("hf://someone", environment)
    assert found.startswith("error: hf://someone: write hf://USER/NAME or ")
    down = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    found = fetch("hf://someone/other@v1", down)
    assert "hf://someone/other@v1: the Hub cannot be reached; check" in found


def test_a_model_in_the_cache_needs_no_hub(pushed):
    environment, hub = pushed
    hub.repositories[NAME] = {"config.json": b"{}", "model.safetensors": b""}
    folder = fetch(f"hf://{NAME}", environment)
    assert not folder.startswith("error"), folder
    down = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fetch(f"hf://{NAME}", down) == folder


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../b", "a/b@main", "hf://a/b", ""])
def test_a_malformed_name_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(InputError, match="write USER/NAME"):
        push(draft(), tmp_path, name)
    assert list(tmp_path.iterdir()) == []
