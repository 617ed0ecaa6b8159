"""main.py as a user runs it: train, resume after kills, eval, embed, bad input."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from configs import openmoji as openmoji_config
from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import (
    MAIN,
    assert_same_run,
    one_line_error,
    parameters,
    rows,
    run,
    start,
    wait_for,
)
from vse_jax.base.errors import InputError
from vse_jax.commands.evaluate import evaluate
from vse_jax.commands.prepare import prepare
from vse_jax.config import load_config, save_config
from vse_jax.data.prepare import openmoji
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.metrics_logger import read_metrics
from vse_jax.train import train

pytestmark = pytest.mark.system


def test_a_run_leaves_what_it_promises(trained):
    workdir, out, _ = trained
    metrics = json.loads((workdir / "eval_test.json").read_text())
    assert (metrics["images"], metrics["captions"]) == (32, 160)
    assert metrics["rsum"] == pytest.approx(
        sum(metrics[d][k] for d in ("i2t", "t2i") for k in ("r1", "r5", "r10"))
    )
    rows = read_metrics(workdir)
    losses = [row["step"] for row in rows if "train/loss" in row]
    assert losses == list(range(1, 61))  # 96 × 5 pairs, batches of 16, two epochs
    assert [row["step"] for row in rows if "eval/dev/rsum" in row] == [30, 60]
    for name in ("train/lr", "train/grad_norm", "perf/images_per_s", "perf/data_wait"):
        assert any(name in row for row in rows), name
    for picture in ("retrieval.png", "curves.png"):
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
    assert f"{metrics['rsum']:.1f}" in out


def test_eval_and_embed_need_only_the_workdir(trained, environment):
    workdir, _, _ = trained
    before = json.loads((workdir / "eval_test.json").read_text())
    (workdir / "eval_test.json").unlink()
    run([f"--workdir={workdir}", "--mode=eval"], environment)
    assert json.loads((workdir / "eval_test.json").read_text()) == before

    dev = "--config.eval.split=dev"
    run([f"--workdir={workdir}", "--mode=embed", dev], environment)
    folder = workdir / "embeddings" / "dev"
    images = np.load(folder / "images.npy")
    captions = np.load(folder / "captions.npy")
    assert images.shape == (32, 32)
    assert captions.shape == (160, 32)
    owners = np.load(folder / "caption_images.npy")
    assert owners.tolist() == np.repeat(np.arange(32), 5).tolist()
    assert len((folder / "image_ids.txt").read_text().splitlines()) == 32
    # They are the best model's, and what training ranked.
    rsums = [row.get("eval/dev/rsum", 0) for row in read_metrics(workdir)]
    found = retrieval_metrics(images, captions, 5)["rsum"]
    assert found == pytest.approx(max(rsums), rel=1e-6)


# Runs a mode whose work is to say what its process is set up for.
PROBE = """
import importlib, sys
import cv2, numpy as np, PIL.Image
from vse_jax import main

def resident():  # bytes
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work(*_, **__):
    before = resident()
    block = np.ones(2**27, np.uint8)
    del block
    kept = resident() - before > 2**26
    print("probe", kept, PIL.Image.MAX_IMAGE_PIXELS, cv2.getNumThreads())

module, _, function = main.MODES[sys.argv.pop(1)].function.partition(":")
setattr(importlib.import_module(module), function, work)
main.main()
"""


@pytest.mark.parametrize(
    "mode", ["train", "eval", "embed", "prepare", "index", "search", "serve"]
)
def test_what_a_mode_sets_for_its_process(mode, tiny_args, environment, tmp_path):
    args = [mode, tiny_args[0], f"--mode={mode}", f"--workdir={tmp_path}"]
    out, _ = run(args, environment, program=[sys.executable, "-c", PROBE])
    (probe,) = [line for line in out.splitlines() if line.startswith("probe")]
    _, kept, limit, threads = probe.split()
    # OpenCV counts the thread that calls it.
    assert (limit, threads) == ("None", "1")
    assert kept == str(mode in ("train", "eval", "embed"))


def test_an_ensemble_of_twins_ranks_as_one(trained, environment, tmp_path):
    workdir, _, _ = trained
    alone = json.loads((workdir / "eval_test.json").read_text())
    args = [f"--config={workdir}/config.json", f"--workdir={tmp_path}"]
    args += ["--mode=eval", f"--config.eval.ensemble={workdir},{workdir}"]
    run(args, environment)
    together = json.loads((tmp_path / "eval_test.json").read_text())
    assert together.pop("ensemble") == [str(workdir)] * 2
    assert together == alone


def test_the_demo_learns_on_a_few_of_its_pictures(environment, tmp_path, monkeypatch):
    """The demo's model on 64 real pictures: far above chance on them soon."""
    with openmoji._CAPTIONS.open(encoding="utf-8") as file:
        lines = file.read().splitlines(keepends=True)
    picked = [lines[0]]
    for split, count in (("train", 64), ("dev", 2), ("test", 2)):
        picked += [line for line in lines if f",{split}," in line][:count]
    (tmp_path / "few.csv").write_text("".join(picked), encoding="utf-8")
    monkeypatch.setattr(openmoji, "_CAPTIONS", tmp_path / "few.csv")
    config = draft(openmoji_config.get_config())
    config.data.root = str(tmp_path / "openmoji")
    config.data.render_size = config.image.size = 48
    config.data.dev_split = config.eval.split = "train"
    config.batch_size, config.num_epochs = 16, 2
    config.data.token_buckets, config.data.max_tokens = (32,), 32  # one program each
    prepare(config)
    # At full size, -O1 pays: compiled in half the time of -O3, and runs as fast.
    level = f"{environment['XLA_FLAGS']} --xla_backend_optimization_level=1"
    environment = environment | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "XLA_FLAGS": level,
    }
    save_config(config, tmp_path / "demo.json")
    workdir = tmp_path / "run"
    run([f"--config={tmp_path / 'demo.json'}", f"--workdir={workdir}"], environment)
    metrics = json.loads((workdir / "eval_train.json").read_text())
    assert (metrics["images"], metrics["captions"]) == (64, 320)
    # Chance: R@1 + R@5 + R@10 = 16 / 64 each way, 50 % together.
    assert metrics["rsum"] > 4 * 50


def test_a_killed_run_ends_with_the_same_bits(
    trained, tiny_args, environment, tmp_path
):
    workdir = tmp_path / "killed"
    args = [*tiny_args, f"--workdir={workdir}"]
    checkpoints = workdir / "checkpoints"

    # First kill: in the middle of an epoch, after a checkpoint.
    process = start(args, environment)
    assert wait_for(lambda: (checkpoints / "14").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    # Second kill: while a checkpoint is being written.
    def writing():
        return any("tmp" in path.name for path in checkpoints.glob("*"))

    leftovers = {path.name for path in checkpoints.glob("*tmp*")}
    process = start(args, environment)
    assert wait_for(
        lambda: {path.name for path in checkpoints.glob("*tmp*")} - leftovers, process
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()

    _, err = run(args, environment)
    assert "resumed from step" in err
    assert not writing()
    assert_same_run(workdir, trained[0])
    assert (workdir / "eval_test.json").read_text() == (
        trained[0] / "eval_test.json"
    ).read_text()


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def about(workdir: Path) -> dict:
    """What the newest checkpoint says of the run."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return json.loads((newest / "data" / "metadata").read_text())


def test_a_run_goes_on_with_other_data_only_when_told_to(
    trained, tiny_args, environment, tmp_path, monkeypatch
):
    """More images for training, others for dev: epochs of 35 steps instead of 30."""
    monkeypatch.setattr(tiny, "SPLITS", {"train": 112, "dev": 32, "test": 16})
    root = tiny.write_root(tmp_path / "tiny")
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    args = [*tiny_args, f"--workdir={workdir}", f"--config.data.root={root}"]
    args += ["--config.num_epochs=3"]
    before = snapshot(workdir)
    assert one_line_error(args, environment) == (
        f"error: {root}: the data of this run changed since the checkpoint of step "
        "60: "
        "'train' had 96 images and 480 captions, now 112 and 560; 'dev' has other "
        "image ids and captions; 'test' had 32 images and 160 captions, now 16 and 80; "
        "--accept_new_data goes on with them and scores the best model again"
    )
    assert snapshot(workdir) == before

    # Accepted and stopped at once: the best model's rsum is that on the new dev split.
    _, err = run([*args, "--accept_new_data", "--config.max_steps=60"], environment)
    assert "accepted: 2 of 3 epochs are done" in err
    on_new = f"--config.data.root={root}"
    dev = ["--mode=eval", "--config.eval.split=dev", on_new]
    run([f"--workdir={workdir}", *dev], environment)
    scored = json.loads((workdir / "eval_dev.json").read_text())["rsum"]
    assert about(workdir)["best_rsum"] == pytest.approx(scored, rel=1e-6)
    rescored = [row for row in rows(workdir) if "eval/dev/best_rsum" in row]
    assert [row["step"] for row in rescored] == [60]
    if about(workdir)["best_step"] == 60:
        assert rescored[0]["eval/dev/best_rsum"] == pytest.approx(scored, rel=1e-6)

    # It is accepted once; what follows may stop anywhere.
    run([*args, "--config.max_steps=75"], environment)
    run(args, environment)
    metrics = rows(workdir)
    losses = [row["step"] for row in metrics if "train/loss" in row]
    assert losses == list(range(1, 60 + 35 + 1))
    assert about(workdir)["step"] == 95
    validated = [row["step"] for row in metrics if "eval/dev/rsum" in row]
    assert validated == [30, 60, 75, 95]

    # The same without a stop in between.
    whole = tmp_path / "whole"
    shutil.copytree(trained[0], whole)
    run([*args, "--accept_new_data", f"--workdir={whole}"], environment)
    expected, found = parameters(whole), parameters(workdir)
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize("change", ["edited", "gone"])
def test_another_vocabulary_than_the_models_is_refused(
    trained, tiny_root, tmp_path, change
):
    """Its copy was edited; or is gone, and another one lies beside the data."""
    workdir, root = tmp_path / "run", tmp_path / "data" / "tiny"
    shutil.copytree(trained[0], workdir)
    shutil.copytree(tiny_root.parent, tmp_path / "data")
    beside, own = tmp_path / "data/vocab/vocab.txt", workdir / "vocab.txt"
    words = own.read_text().splitlines()
    beside.write_text("\n".join([*words[:5], *words[:4:-1]]) + "\n")
    beside.replace(own) if change == "edited" else own.unlink()
    config = draft(load_config(workdir / "config.json"))
    config.data.root = str(root)
    named = own if change == "edited" else beside
    with pytest.raises(
        InputError, match=f"^{named}: not the vocabulary that the model in {workdir}"
    ):
        evaluate(config, workdir)


def test_a_second_start_touches_nothing_and_says_who_has_the_folder(
    trained, tiny_args, environment, tmp_path
):
    workdir = tmp_path / "two"
    args = [*tiny_args, "--config.checkpoint.every_steps=1", f"--workdir={workdir}"]
    first = start(args, environment)
    checkpoints = workdir / "checkpoints"
    assert wait_for(lambda: (checkpoints / "3").exists(), first)
    # Again in the middle of its work, once with another config, which would be refused
    # for that.
    for change in ([], ["--config.loss.margin=0.3"]):
        line = one_line_error([*args, *change], environment)
        assert line.startswith(f"error: {workdir}: another process (pid {first.pid} on")
        assert f"{socket.gethostname()}, since {datetime.now():%Y-%m-%d}" in line
        assert first.poll() is None, "it ended too early to show anything"
    _, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    assert_same_run(workdir, trained[0])
    assert not (workdir / "lock").exists()


def test_the_folder_of_a_killed_run_is_taken_over(tiny_args, environment, tmp_path):
    workdir = tmp_path / "killed"
    args = [*tiny_args, f"--workdir={workdir}", "--config.max_steps=3"]
    process = start(args, environment)
    assert wait_for(lambda: (workdir / "lock").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (workdir / "lock").exists()
    run(args, environment)
    assert not (workdir / "lock").exists()


@pytest.mark.slow
def test_an_optimised_build_resumes_with_the_same_bits(
    tiny_args, environment, tmp_path
):
    """The other tests compile without optimisation, which a user does not."""
    optimised = {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    for workdir, stops in (("whole", (20,)), ("parts", (7, 20))):
        for stop in stops:
            args = [*tiny_args, f"--workdir={tmp_path / workdir}"]
            run([*args, f"--config.max_steps={stop}"], optimised)
    whole, parts = (parameters(tmp_path / name) for name in ("whole", "parts"))
    for path, array in whole.items():
        np.testing.assert_array_equal(parts[path], array, err_msg=path)


_KILLED_BEFORE_OLD_ONES_GO = """
import os, runpy, signal, sys
import orbax.checkpoint as ocp
save = ocp.CheckpointManager.save
def save_and_be_killed(self, step, **items):
    if step < 30:
        return save(self, step, **items)
    # What Orbax does once a checkpoint is whole, and before it removes others.
    self._checkpoint_deleter.delete_steps = lambda _: os.kill(os.getpid(), 9)
    save(self, step, **items)
    self.wait_until_finished()
ocp.CheckpointManager.save = save_and_be_killed
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def test_killed_when_the_best_is_saved_it_is_not_lost(tiny_args, environment, tmp_path):
    """The new best is there, and those before it are not removed yet."""
    workdir = tmp_path / "killed"
    args = [*tiny_args, f"--workdir={workdir}", "--config.max_steps=30"]
    program = [sys.executable, "-c", _KILLED_BEFORE_OLD_ONES_GO]
    run(args, environment, code=-signal.SIGKILL, program=program)
    checkpoints = workdir / "checkpoints"
    assert {path.name for path in checkpoints.glob("[0-9]*")} == {"28", "30"}
    killed = parameters(workdir)
    run(args, environment)
    assert about(workdir)["best_step"] == 30
    assert parameters(workdir).keys() == killed.keys()
    for path, array in parameters(workdir, "best").items():
        np.testing.assert_array_equal(killed[path], array, err_msg=path)


def test_a_full_disk_keeps_the_last_good_checkpoint(trained, environment, tmp_path):
    workdir = tmp_path / "full"
    shutil.copytree(trained[0], workdir)

    # Files may not grow past 64 kB: writing fails as it does on a full disk.
    small = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *MAIN]
    args = [f"--workdir={workdir}", "--config.num_epochs=3"]
    # Without the compilation cache, whose own failure to write is another test.
    uncached = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    line = one_line_error(args, uncached, program=small)
    assert "could not save" in line
    assert parameters(workdir, "best")  # whole
    _, err = run(args, environment)
    assert "resumed from step 60" in err


def test_a_nan_loss_stops_and_names_the_step(trained, environment, tmp_path):
    workdir = tmp_path / "nan"
    args = [
        f"--config={trained[0]}/config.json",
        f"--workdir={workdir}",
        "--config.optimizer.learning_rate=1e30",
    ]
    assert "at step " in one_line_error(args, environment)
    assert not list((workdir / "checkpoints").glob("[0-9]*"))


def test_a_cache_that_cannot_be_written_only_costs_time(trained, environment):
    nowhere = {**environment, "JAX_COMPILATION_CACHE_DIR": "/proc/nowhere"}
    nowhere["PYTHONWARNINGS"] = "default"
    run([f"--workdir={trained[0]}", "--mode=eval"], nowhere)


@pytest.fixture(scope="session")
def without_jax(environment, tmp_path_factory):
    """An environment in which importing jax fails."""
    folder = tmp_path_factory.mktemp("no_jax")
    (folder / "jax.py").write_text("raise ImportError('jax was imported')")
    return {**environment, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ["--config.batch_sise=3"],
            "--config.batch_sise=3: no such config field; did you mean "
            "--config.batch_size?",
        ),
        (
            ["--config.image.nope=3", "--config.batch_size=many", "--config.seed=-1"],
            "--config.image.nope=3: no such config field; --config.batch_size=many: "
            "invalid literal for int() with base 10: 'many'; config.seed: -1 is less "
            "than 0",
        ),
        (["--config.seed"], "--config.seed: no value; write --config.seed=VALUE"),
        (
            ["--config=configs/absent.py"],
            "--config=configs/absent.py: no such file configs/absent.py",
        ),
        (["--config=README.md"], "--config=README.md: neither a .py nor a .json file"),
        (["--mode=fly"], "--mode: 'fly' is none of train"),
        (["--nope"], "Unknown command line flag 'nope'"),
        (["nope"], "nope: no such argument"),
        (["--workdir="], "--workdir: needed by --mode=train"),
        (
            ["--workdir=hf://a/b@main"],
            "flag --workdir=hf://a/b@main: fetch it first: hf download a/b "
            "--revision main --local-dir",
        ),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line(
    change, line, tiny_args, without_jax, tmp_path
):
    args = [*tiny_args, f"--workdir={tmp_path / 'run'}", *change]
    assert one_line_error(args, without_jax).startswith(f"error: {line}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("def get_config(:\n", ", line 1: SyntaxError: invalid syntax"),
        ("import nothing_here\n", ", line 1: ModuleNotFoundError: No module named"),
        (
            "from configs import common\n\ndef get_config():\n    c = common.base()\n"
            "    c.imag.size = 3\n    return c\n",
            ", line 5: AttributeError: 'imag'",
        ),
        (
            "from configs import common\n\ndef get_config():\n    c = common.base()\n"
            "    c.image.sise = 3\n    return c\n",
            ", line 5: AttributeError: no field 'sise' in the config; did you mean",
        ),
        ("x = 1\n", ": AttributeError: module 'config_file' has no attribute"),
        ("def get_config():\n    return {}\n", ": get_config() returns no ConfigDict"),
    ],
)
def test_an_error_in_ones_own_config_is_shown_with_its_line(
    content, line, without_jax, tmp_path
):
    file = tmp_path / "mine.py"
    file.write_text(content)
    found = one_line_error([f"--config={file}", f"--workdir={tmp_path}"], without_jax)
    assert found.startswith(f"error: {file}{line}"), found


def test_runs_from_any_folder(without_jax, tmp_path):
    """The project's configs are found, and so are one's own beside one."""
    (tmp_path / "mine.py").write_text("from configs.openmoji import get_config\n")
    program = [sys.executable, str(Path("main.py").absolute())]
    for config in ("configs/openmoji.py", "mine.py"):
        args = [*program, f"--config={config}", "--mode=fly"]
        done = subprocess.run(
            args, cwd=tmp_path, env=without_jax, capture_output=True, text=True
        )
        assert "'fly' is none of" in done.stderr


def test_verbosity_shows_where_an_error_comes_from(tiny_args, without_jax):
    _, err = run([*tiny_args, "--verbosity=1", "--workdir="], without_jax, code=1)
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: --workdir: needed")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"data.root": "/absent"}, "/absent: no such data root"),
        ({"data.dev_split": "absent"}, "absent_caps.txt"),
        ({"eval.split": "absent"}, "absent_caps.txt"),
        ({"data.format": "tfds"}, "checksums.json: No such file"),
        ({"mesh.data": 3}, "config.mesh: slice=-1 × data=3"),
        ({"batch_size": 1000}, "config.batch_size = 1000"),
        ({"text.vocab_size": 7}, "config.text.vocab_size is 7"),
        ({"text.weights": "/absent"}, "/absent"),
        ({"image.weights": "/absent"}, "/absent"),
    ],
)
def test_bad_input_is_named(change, names, tiny_config, tmp_path):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError) as error:
        train(tiny_config, tmp_path / "run")
    assert names in str(error.value)


def test_a_workdir_that_cannot_be_made(tiny_config):
    with pytest.raises(InputError, match="/proc/absent: "):
        train(tiny_config, Path("/proc/absent"))


def test_a_workdir_of_another_config_names_the_fields(trained):
    config = draft(load_config(trained[0] / "config.json"))
    config.loss.margin = 0.1
    with pytest.raises(InputError, match=r"loss.margin \(0.2 there, 0.1 here\)"):
        train(config, trained[0])
    config.embed_dim = 64
    # The recipe is of no interest to evaluation.
    with pytest.raises(InputError, match=r"fields: embed_dim \(32 there, 64 here\)$"):
        evaluate(config, trained[0])


def test_a_workdir_without_a_run(without_jax, tmp_path):
    line = one_line_error([f"--workdir={tmp_path}", "--mode=eval"], without_jax)
    assert "no saved config" in line


def test_a_run_says_what_computes_and_what_it_trains(trained):
    workdir, _, err = trained
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["devices"]["count"] == facts["processes"] == 1
    assert facts["mesh"] == {"slice": 1, "data": 1, "fsdp": 1}
    assert facts["data"]["train"] == {"images": 96, "captions": 480}
    assert (facts["steps_per_epoch"], facts["steps"]) == (30, 60)
    total = sum(x.size for x in parameters(workdir).values())
    counts = [n for tower in facts["parameters"].values() for n in tower.values()]
    statistics = sum(
        x.size for path, x in parameters(workdir).items() if "batch_stats" in path
    )
    assert sum(counts) == total - statistics
    assert f"results go to {workdir}" in err
    assert "1 × cpu" in err
