"""main.py as a user runs it: train, resume after kills, eval, embed, bad input."""

import json
import shutil
import signal

import numpy as np
import pytest

from tests.helpers.programs import (
    MAIN,
    one_line_error,
    parameters,
    run,
    start,
    wait_for,
)
from vse_jax.training.metric_writer import read_metrics


@pytest.fixture(scope="session")
def tiny_args(tiny_root):
    return [
        f"--config=tests/helpers/tiny.py:{tiny_root}",
        "--config.checkpoint.every_steps=7",
    ]


@pytest.fixture(scope="session")
def trained(tiny_args, environment, tmp_path_factory):
    """A workdir that was trained without interruption, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    out, err = run([*tiny_args, f"--workdir={workdir}"], environment)
    return workdir, out, err


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

    args = [f"--workdir={workdir}", "--mode=embed", "--config.eval.split=dev"]
    run(args, environment)
    run([*args[:1], "--mode=eval", args[2]], environment)
    folder = workdir / "embeddings" / "dev"
    images = np.load(folder / "images.npy")
    captions = np.load(folder / "captions.npy")
    assert images.shape == (32, 32)
    assert captions.shape == (160, 32)
    assert len((folder / "image_ids.txt").read_text().splitlines()) == 32
    # The embeddings are the ones that eval ranked.
    from vse_jax.evaluation.ranking import retrieval_metrics

    assert retrieval_metrics(images, captions, 5) == json.loads(
        (workdir / "eval_dev.json").read_text()
    )


def test_an_ensemble_of_twins_ranks_as_one(trained, environment, tmp_path):
    workdir, _, _ = trained
    alone = json.loads((workdir / "eval_test.json").read_text())
    args = [f"--config=configs/saved.py:{workdir}", f"--workdir={tmp_path}"]
    args += ["--mode=eval", f"--config.eval.ensemble={workdir},{workdir}"]
    run(args, environment)
    together = json.loads((tmp_path / "eval_test.json").read_text())
    assert together.pop("ensemble") == [str(workdir)] * 2
    assert together == alone


def test_one_epoch_on_real_pictures_learns(environment, tmp_path):
    """The demo at half its picture size: prepare, one epoch, far above chance."""
    environment = {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    root, workdir = tmp_path / "openmoji", tmp_path / "run"
    args = ["--config=configs/openmoji.py", f"--config.data.root={root}"]
    run([*args, "--mode=prepare", "--config.data.render_size=48"], environment)
    args += [f"--workdir={workdir}", "--config.image.size=48", "--config.num_epochs=1"]
    run(args, environment)
    (dev,) = (row for row in read_metrics(workdir) if "eval/dev/rsum" in row)
    # Chance on 500 images and 2500 captions: R@1 + R@5 + R@10 = 3.2 % each way at most.
    assert dev["eval/dev/rsum"] > 5 * 7
    metrics = json.loads((workdir / "eval_test.json").read_text())
    assert (metrics["images"], metrics["captions"]) == (500, 2500)


def test_a_killed_run_ends_with_the_same_bits(
    trained, tiny_args, environment, tmp_path
):
    workdir = tmp_path / "killed"
    args = [*tiny_args, f"--workdir={workdir}"]
    last = workdir / "checkpoints" / "last"

    # First kill: in the middle of an epoch, after a checkpoint.
    process = start(args, environment)
    assert wait_for(lambda: (last / "14").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    # Second kill: while a checkpoint is being written.
    def writing():
        return any("tmp" in path.name for path in last.glob("*"))

    leftovers = {path.name for path in last.glob("*tmp*")}
    process = start(args, environment)
    assert wait_for(
        lambda: {path.name for path in last.glob("*tmp*")} - leftovers, process
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()

    _, err = run(args, environment)
    assert "resumed from step" in err
    assert not writing()
    expected = parameters(trained[0])
    found = parameters(workdir)
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)

    def scalars(folder):
        return [
            (row["step"], row["train/loss"])
            for row in read_metrics(folder)
            if "train/loss" in row
        ]

    assert scalars(workdir) == scalars(trained[0])
    assert (workdir / "eval_test.json").read_text() == (
        trained[0] / "eval_test.json"
    ).read_text()


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
    run([f"--workdir={workdir}", "--mode=eval"], environment)
    _, err = run(args, environment)
    assert "resumed from step 60" in err


def test_a_nan_loss_stops_and_names_the_step(trained, environment, tmp_path):
    workdir = tmp_path / "nan"
    args = [
        f"--config=configs/saved.py:{trained[0]}",
        f"--workdir={workdir}",
        "--config.optimizer.learning_rate=1e30",
    ]
    assert "at step " in one_line_error(args, environment)
    assert not list((workdir / "checkpoints" / "last").glob("[0-9]*"))


def test_a_cache_that_cannot_be_written_only_costs_time(trained, environment):
    nowhere = {**environment, "JAX_COMPILATION_CACHE_DIR": "/proc/nowhere"}
    nowhere["PYTHONWARNINGS"] = "default"
    run([f"--workdir={trained[0]}", "--mode=eval"], nowhere)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (["--config.nope=3"], "--config.nope=3: no such config field"),
        (["--config.image.nope=3"], "--config.image.nope=3: no such config field"),
        (["--config.batch_size=many"], "--config.batch_size=many"),
        (["--config=configs/absent.py"], "configs/absent.py"),
        (["--config.data.root=/absent"], "/absent"),
        (["--config.data.dev_split=absent"], "absent_caps.txt"),
        (["--config.eval.split=absent"], "absent_caps.txt"),
        (["--config.data.workers=elves"], "config.data.workers"),
        (["--config.data.format=elves"], "config.data.format"),
        (["--config.data.format=tfds"], "train.json: No such file"),
        (["--config.image.pool=elves"], "pool"),
        (["--config.task=elves"], "config.task: 'elves'"),
        (["--config.task=gpo_synthetic", "--mode=eval"], "gpo_synthetic: 'eval'"),
        (["--config.image.kind=elves"], "config.image.kind"),
        (["--config.optimizer.name=elves"], "config.optimizer.name"),
        (["--config.matmul_precision=elves"], "config.matmul_precision"),
        (["--config.mesh.data=3"], "config.mesh"),
        (["--config.batch_size=1000"], "config.batch_size"),
        (["--config.text.vocab_size=7"], "config.text.vocab_size"),
        (["--config.text.weights=/absent"], "/absent"),
        (["--config.image.weights=/absent"], "/absent"),
        (["--mode=fly"], "--mode=fly"),
        (["--workdir=/proc/absent"], "/proc/absent"),
    ],
)
def test_bad_input_is_one_line(change, names, tiny_args, environment, tmp_path):
    args = [*tiny_args, f"--workdir={tmp_path / 'run'}", *change]
    assert names in one_line_error(args, environment)


def test_a_workdir_of_another_config_names_the_fields(trained, environment):
    args = [
        f"--workdir={trained[0]}",
        "--config.embed_dim=64",
        "--config.loss.margin=0.1",
    ]
    line = one_line_error(args, environment)
    assert "embed_dim (32 there, 64 here), loss.margin (0.2 there, 0.1 here)" in line
    line = one_line_error([*args[:2], "--mode=eval"], environment)
    assert line.endswith("differing fields: embed_dim (32 there, 64 here)")


def test_a_workdir_without_a_run(environment, tmp_path):
    line = one_line_error([f"--workdir={tmp_path}", "--mode=eval"], environment)
    assert "no saved config" in line
