"""--model: the weights that a mode uses, apart from --workdir, where results go."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import vse_jax
from tests.helpers import siglip, tiny
from tests.helpers.hub import serving
from tests.helpers.programs import one_line_error
from tests.helpers.programs import run as run_program
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.folder import model_config, model_name
from vse_jax.commands.embed import embed
from vse_jax.commands.evaluate import evaluate
from vse_jax.commands.export_model import export_model
from vse_jax.commands.plot import plot
from vse_jax.commands.push import push
from vse_jax.config import load_config, typed, with_fields
from vse_jax.train import train
from vse_search.commands.explain import explain
from vse_search.commands.index import index
from vse_search.commands.search import search

NAME = "google/siglip-tiny"
DOWN = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a SigLIP, as Hugging Face's library writes it."""
    return siglip.write_folder(tmp_path_factory.mktemp("hf") / "siglip", siglip.peer())


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    """A run's folder: a config.json and a best checkpoint."""
    config = tiny.quick(tiny.get_config(str(tiny_root)))
    config.image.pool = "gpo"
    return write_run(typed(config), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    """What --mode=push writes of it."""
    workdir = tmp_path_factory.mktemp("pushed")
    push(load_config(run / "config.json"), workdir, None, run)
    return workdir / "share"


def contents(folder):
    """Every file below a folder, with its content and its time."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]


def config_of(folder, tiny_root, **search):
    """As the command line reads it without --config."""
    own = {f"search.{name}": value for name, value in search.items()}
    data = {"data.root": str(tiny_root), "data.name": "tiny"}
    return with_fields(model_config(folder), data | own)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("kind", ["run", "shared", "published"])
def test_results_go_to_the_workdir_and_the_model_stays(
    kind, request, tiny_root, tmp_path, capsys
):
    model = request.getfixturevalue(kind)
    before = contents(model)
    picture = next((tiny_root / "images").iterdir())
    config = config_of(model, tiny_root, pictures=str(tiny_root / "images"))
    workdir = tmp_path / "results"
    evaluate(config, workdir, model)
    embed(config, workdir, model)
    export_model(config, workdir, model)
    push(config, workdir, None, model)
    index(config, workdir, model)
    search(config_of(model, tiny_root, query="a red bar"), workdir, model)
    asked = config_of(model, tiny_root, query="a red bar", like=str(picture))
    explain(asked, workdir, model)
    written = {"eval_test.json", "embeddings", "exported", "share", "index"}
    written.add("explanation.png")
    if kind != "published":  # which has no GPO
        plot(config, workdir, model)
        written |= {"coefficients.png", "coefficients.svg"}
    assert {path.name for path in workdir.iterdir()} == written
    assert contents(model) == before
    vectors = np.load(workdir / "embeddings" / "test" / "captions.npy")
    first = (tiny_root / "precomp" / "test_caps.txt").read_text().splitlines()[0]
    there, here = vse_jax.load(model), vse_jax.load(workdir / "share")
    np.testing.assert_allclose(vectors[0], there.encode_captions([first])[0], atol=1e-5)
    # What was pushed is the same model.
    np.testing.assert_array_equal(
        there.encode_captions([first]), here.encode_captions([first])
    )


def test_the_config_may_be_given_for_a_published_model(published, tiny_root, tmp_path):
    """Its folder decides; another pooling than its own has no published weights."""
    config = config_of(published, tiny_root)
    elsewhere = {"image.weights": "/absent", "text.weights": "/absent"}
    embed(with_fields(config, elsewhere), tmp_path, published)
    with pytest.raises(InputError, match=r"config\.image\.pool is 'gpo', not 'map'"):
        embed(with_fields(config, {"image.pool": "gpo"}), tmp_path, published)


def test_an_ensemble_names_its_models_itself(run, tiny_root, tmp_path):
    config = with_fields(config_of(run, tiny_root), {"eval.ensemble": f"{run},{run}"})
    with pytest.raises(InputError, match=r"config\.eval\.ensemble: .* --model"):
        evaluate(config, tmp_path, run)


# ---- Training starts from it ---------------------------------------------------------


def one_step(config):
    """Trains one step, in which nothing changes by more than rounding."""
    return with_fields(
        config,
        {
            "batch_size": 16,
            "num_epochs": 1,
            "max_steps": 1,
            "optimizer.rules": ((".*", 1e-20, 0),),
        },
    )


def assert_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected
    )


def params(folder):
    return vse_jax.load(folder)._arrays["params"]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("kind", ["run", "shared"])
def test_training_starts_from_a_model(kind, request, tiny_root, tmp_path):
    model = request.getfixturevalue(kind)
    before = contents(model)
    config = one_step(config_of(model, tiny_root))
    config = with_fields(config, {"loss.name": "infonce"})
    train(config, tmp_path / "new", model=model)
    found, expected = params(tmp_path / "new"), params(model)
    assert float(found.pop("loss")["log_scale"]) == pytest.approx(np.log(1 / 0.07))
    assert_close(found, expected)
    assert contents(model) == before
    saved = load_config(tmp_path / "new" / "config.json")
    assert saved.weights == str(model)  # so that a run that is killed early knows it
    # The next start goes on with the run, wherever the model is by then.
    train(with_fields(config, {"weights": "/absent"}), tmp_path / "new")


@pytest.mark.usefixtures("without_figures")
def test_training_starts_from_a_published_model(published, tiny_root, tmp_path):
    config = one_step(config_of(published, tiny_root))
    elsewhere = {"image.weights": None, "text.weights": None}
    train(with_fields(config, elsewhere), tmp_path / "new", model=published)
    assert_close(params(tmp_path / "new"), params(published))


def test_training_starts_from_no_other_model(run, published, tiny_config, tmp_path):
    tiny_config.embed_dim = 64
    with pytest.raises(InputError, match=r"embed_dim \(32 there, 64 here\)"):
        train(tiny_config, tmp_path / "new", model=run)
    with pytest.raises(InputError, match=r"config\.image\.kind is 'grid', not 'vit'"):
        train(tiny_config, tmp_path / "new", model=published)
    tiny_config.weights = "/absent"
    with pytest.raises(InputError, match=r"config\.weights: there is no folder"):
        train(tiny_config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- The command line, and the Hub ---------------------------------------------------


def test_a_model_of_the_hubs_cache_has_its_name_there(tmp_path):
    place = tmp_path / "models--google--siglip2-base" / "snapshots" / "0a1b"
    place.mkdir(parents=True)
    assert model_name(place) == "google/siglip2-base"
    assert model_name(tmp_path / "snapshots" / "demo") == "demo"


@pytest.fixture
def hub(published, environment, tmp_path):
    """(an environment with a stand-in for the Hub, what that serves)."""
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    with serving({NAME: files}) as (address, handler):
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        yield environment | own, handler


def test_photos_are_found_by_a_model_from_the_hub(hub, tiny_root, tmp_path):
    environment, _ = hub
    args = [f"--model=hf://{NAME}", f"--workdir={tmp_path / 'photos'}"]
    pictures = f"--config.search.pictures={tiny_root}/images"
    run_program([*args, "--mode=index", pictures], environment)
    query = ["--config.search.query=a red bar", "--config.search.format=json"]
    asked = [*args, "--mode=search", *query, "--config.search.min_score=-1"]
    out, _ = run_program(asked, environment)
    assert len(json.loads(out)) == 10
    assert {path.name for path in (tmp_path / "photos").iterdir()} == {"index"}
    # What was fetched needs no connection any more.
    assert run_program(asked, environment | DOWN)[0] == out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"HF_ENDPOINT": "down"}, "cannot be reached; check the connection, or "
         f"fetch it elsewhere by `hf download {NAME} --local-dir FOLDER` and name"),
        ({"gated": True}, "its owner has to let you in: ask on its page, and log in"),
        ({"config.json": b'{"model_type": "clip"}'}, "model_type is 'clip', not "
         "'vse_jax' (what --mode=push writes) or 'siglip' (SigLIP, and SigLIP2 of"),
        ({"config.json": b'{"model_type": ["blip"]}'}, "model_type is ['blip'], not"),
        ({"model.safetensors": None}, "holds no model.safetensors: not a model for"),
        ({"model.safetensors": b"version https://git-lfs"}, "not a whole safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_from_the_hub(change, line, hub, tiny_root, tmp_path):
    environment, handler = hub
    for name, value in change.items():
        if name == "HF_ENDPOINT":
            environment = environment | DOWN
        elif name == "gated":
            handler.gated.add(NAME)
        elif value is None:
            del handler.repositories[NAME][name]
        else:
            handler.repositories[NAME][name] = value
    args = [f"--model=hf://{NAME}", f"--workdir={tmp_path / 'w'}", "--mode=index"]
    args.append(f"--config.search.pictures={tiny_root}/images")
    found = one_line_error(args, environment)
    assert line in found, found
    if "config.json" in change:  # what cannot be used is not downloaded
        assert f"{NAME}/model.safetensors" not in handler.sent
    assert not (tmp_path / "w").exists()


def test_a_half_downloaded_file_is_named(published, environment, tiny_root, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    args = [f"--model={copy}", f"--workdir={tmp_path / 'w'}", "--mode=embed"]
    args += [f"--config.data.root={tiny_root}", "--config.data.name=tiny"]
    found = one_line_error(args, environment)
    assert f"{weights}: not a whole safetensors file; was its download cut" in found


def test_a_published_model_has_no_recipe(published, environment, tmp_path):
    args = [f"--model={published}", f"--workdir={tmp_path / 'new'}"]
    found = one_line_error(args, environment)
    assert found.startswith("error: --config: needed to train from a published SigLIP")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model=/absent", "--workdir=w"], "--model: there is no folder /absent"),
        (["--model=hf://google", "--workdir=w"], "hf://google: write hf://USER/NAME"),
        (["--model=/absent", "--mode=eval"], "--workdir: needed by --mode=eval"),
        (["--model=ftp://a/b", "--workdir=w"], "--model: ftp://a/b: neither a folder"),
        (["--model=a", "--mode=prepare"], "--model: --mode=prepare uses no weights"),
        (
            ["--model=a", "--workdir=w", "--mode=compile"],
            "--model: --mode=compile uses no weights",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, line, environment):
    found = one_line_error(["--config=configs/openmoji.py", *arguments], environment)
    assert found.startswith(f"error: {line}")


@pytest.mark.system
def test_make_photos_says_what_it_needs_and_fetches_first(tmp_path):
    for name in ("requirements.lock", "requirements-search.lock"):
        (tmp_path / name).touch()

    def told(*arguments):
        makefile = str(Path("Makefile").absolute())
        command = ["make", "-f", makefile, "-C", str(tmp_path), "--dry-run", "photos"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    assert "PICTURES=FOLDER: name the folder of your photos" in told().stderr
    lines = [x for x in told("PICTURES=~/a b").stdout.splitlines() if "make" not in x]
    assert "Apache-2.0, 1.5 GB" in lines[0]
    assert '--config.search.pictures="~/a b"' in "\n".join(lines)
    other = told("PICTURES=a", "MODEL=my model").stdout
    assert '--model="my model" --workdir=runs/photos --mode=serve' in other
    assert "GB" not in other
    (tmp_path / "runs" / "photos" / "index").mkdir(parents=True)
    assert told().returncode == 0  # the index knows its folder
