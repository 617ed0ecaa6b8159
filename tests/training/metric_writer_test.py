import json
import subprocess
import sys

import pytest

from vse_jax.base.errors import InputError
from vse_jax.training.metric_writer import MetricWriter, read_metrics


def write(workdir, steps, value=1.0, resume_at=0):
    writer = MetricWriter(workdir)
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
    writer = MetricWriter(tmp_path, active=False)
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
    writer = MetricWriter(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.jsonl: No space left"):
        writer.write(1, {"train/loss": 1.0})


def test_training_loads_no_pytorch(tmp_path):
    """tensorboardX would; convert and its tests, where it is used, still can."""
    code = """
import pathlib, sys
import vse_jax.commands.train
from vse_jax.training.metric_writer import MetricWriter
writer = MetricWriter(pathlib.Path(sys.argv[1]))
writer.write(1, {"train/loss": 1.0})
writer.close()
assert "torch" not in sys.modules
import torch
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert list((tmp_path / "tensorboard").iterdir())
