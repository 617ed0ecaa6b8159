"""metrics.jsonl, and what a line of it says of the steps since the last one."""

import itertools
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from vse_jax import metrics_logger
from vse_jax.base.errors import InputError
from vse_jax.metrics_logger import MetricsLogger, read_metrics


def write(workdir, steps, value=1.0, resume_at=0):
    writer = MetricsLogger(workdir)
    writer.truncate_after(resume_at)
    for step in steps:
        writer.write(step, {"train/loss": value, "train/lr": 5e-4})
    writer.close()


def test_one_object_a_line(tmp_path):
    write(tmp_path, [10, 20], value=2.5)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 10, "train/loss": 2.5, "train/lr": 5e-4},
        {"step": 20, "train/loss": 2.5, "train/lr": 5e-4},
    ]
    assert read_metrics(tmp_path)[1]["step"] == 20
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_has_no_step_twice(tmp_path):
    write(tmp_path, [10, 20, 30], value=1.0)
    write(tmp_path, [20, 30], value=2.0, resume_at=15)
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        (10, 1.0),
        (20, 2.0),
        (30, 2.0),
    ]


def test_an_unfinished_last_line_is_dropped(tmp_path):
    write(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [row["step"] for row in read_metrics(tmp_path)] == [10]
    write(tmp_path, [20], resume_at=10)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]


def test_a_value_that_is_not_finite_stays_valid_json(tmp_path):
    write(tmp_path, [10], value=float("inf"))
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_metrics(tmp_path)[0]["train/loss"] is None


def test_an_inactive_writer_writes_nothing(tmp_path):
    write(tmp_path, [10])
    before = sorted(tmp_path.rglob("*"))
    writer = MetricsLogger(tmp_path, active=False)
    writer.truncate_after(0)
    writer.write(5, {"train/loss": 1.0})
    writer.close()
    assert sorted(tmp_path.rglob("*")) == before
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize("line", ["{broken", '{"loss": 1}', "3", '{"step": "x"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: "):
        read_metrics(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_a_full_disk_is_bad_input(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsLogger(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.jsonl: No space left"):
        writer.write(1, {"train/loss": 1.0})


@pytest.mark.system
def test_training_loads_no_pytorch(tmp_path):
    """tensorboardX would; convert and its tests, where it is used, still can."""
    code = """
import pathlib, sys
import vse_jax.train
from vse_jax.metrics_logger import MetricsLogger
writer = MetricsLogger(pathlib.Path(sys.argv[1]))
writer.write(1, {"train/loss": 1.0})
writer.close()
assert "torch" not in sys.modules
import torch
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert list((tmp_path / "tensorboard").iterdir())


# ---- Training steps ----


@pytest.fixture
def logger(tmp_path, monkeypatch):
    """One whose clock advances a second at each look."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(metrics_logger, "time", clock)
    with_close = MetricsLogger(tmp_path, batch_size=8)
    yield with_close
    with_close.close()


def scalars(loss, lr=0.1):
    values = {"loss": loss, "grad_norm": 2 * loss, "lr": lr}
    return {name: jnp.float32(x) for name, x in values.items()}


def test_a_line_holds_means_and_the_last_rate(logger, tmp_path):
    logger.add(1, scalars(1.0))  # which also waits for its compilation: no rate
    logger.add(2, scalars(3.0, lr=0.5))
    assert logger.timed_next(iter([7])) == 7  # waits from one look to the next
    logger.flush()
    logger.flush()  # nothing new, no line
    first, line = read_metrics(tmp_path)
    assert first.keys() == {"step", "perf/first_step_s"}
    assert line == {
        "step": 2,
        "train/loss": 2.0,
        "train/grad_norm": 4.0,
        "train/lr": 0.5,
        "perf/images_per_s": 8 / 3,
        "perf/data_wait": pytest.approx(1 / 3),
    }


def test_a_line_that_is_due_comes_with_the_next_step(logger, tmp_path):
    logger.add(1, scalars(1.0))
    logger.flush_soon()
    assert len(read_metrics(tmp_path)) == 1  # what the first step took
    logger.add(2, scalars(2.0))
    logger.flush()
    rows = read_metrics(tmp_path)
    assert [row.get("train/loss") for row in rows] == [None, 1.0, 2.0]
    assert ["perf/images_per_s" in row for row in rows] == [False, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_of_many_is_named(logger, tmp_path, bad):
    for step, loss in enumerate((1.0, bad, 2.0, bad), start=1):
        logger.add(step, scalars(loss))
    with pytest.raises(InputError, match=f"train/loss is {bad} at step 2; stopped"):
        logger.flush()
    assert all("train/loss" not in row for row in read_metrics(tmp_path))


def test_advice_on_a_bad_step_fits(logger, tmp_path):
    """Before the first update, it cannot be the learning rate."""
    logger.add(1, scalars(math.nan))
    with pytest.raises(InputError, match=r"at step 1; stopped: no weight was") as error:
        logger.flush()
    assert "learning_rate" not in str(error.value)
    resumed = MetricsLogger(tmp_path, batch_size=8, first_step=None)
    resumed.add(1, scalars(math.nan))
    with pytest.raises(InputError, match=r"lower config\.optimizer\.learning_rate\?"):
        resumed.flush()
    resumed.close()


def test_a_validation_names_its_split(logger, tmp_path):
    ways = {way: {"r1": 1.0, "medr": 7.0} for way in ("i2t", "t2i")}
    logger.write_validation(3, "dev", {"rsum": 2.0, **ways})
    (line,) = read_metrics(tmp_path)
    assert line["eval/dev/rsum"] == 2.0
    assert line["eval/dev/t2i_medr"] == 7.0
