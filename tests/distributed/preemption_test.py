"""SIGTERM at any moment of a training run (several processes: cluster_test.py)."""

import signal
import sys

import pytest

from tests.helpers.programs import (
    assert_same_run,
    free_port,
    rows,
    run,
    start,
    wait_for,
)
from vse_jax.distributed import preemption
from vse_jax.train import train

pytestmark = pytest.mark.system


@pytest.fixture
def config(tiny_config):
    c = tiny_config
    c.max_steps = 7
    return c


def stop_at(monkeypatch, number):
    """Makes the `number`-th check of a run find SIGTERM; 0: none."""
    checks = iter(range(1, 10**6))

    def check():
        if next(checks) == number:
            raise preemption.Preempted

    monkeypatch.setattr(preemption, "check", check)


def test_stopped_anywhere_it_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    stop_at(monkeypatch, 0)
    train(config, tmp_path / "whole")
    workdir = tmp_path / "stopped"
    # Before anything is compiled; after 3 steps; during the validation after step 7,
    # which takes 6 batches and is then repeated; during the test.
    for number in (1, 5, 5 + 2, 6 + 3):
        stop_at(monkeypatch, number)
        with pytest.raises(preemption.Preempted) as stop:
            train(config, workdir)
        assert stop.value.code == 75
    stop_at(monkeypatch, 0)
    train(config, workdir)
    assert_same_run(workdir, tmp_path / "whole")
    assert [row["step"] for row in rows(workdir)] == [*range(1, 8), 7]
    name = "eval_test.json"
    assert (workdir / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_what_was_measured_before_a_stop_is_written(config, tmp_path, monkeypatch):
    config.log_every = 5
    stop_at(monkeypatch, 5)
    with pytest.raises(preemption.Preempted):
        train(config, tmp_path)
    stop_at(monkeypatch, 0)
    train(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [3, 5, 7, 7]


def test_sigterm_saves_and_ends_with_75(tiny_root, environment, tmp_path):
    workdir = tmp_path / "run"
    args = [f"--config=tests/helpers/tiny.py:{tiny_root}", f"--workdir={workdir}"]
    process = start(args, environment)
    metrics = workdir / "metrics.jsonl"
    assert wait_for(
        lambda: metrics.exists() and '"step": 3' in metrics.read_text(), process, 300
    )
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    (step,) = (path.name for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert err.splitlines()[-1].endswith(
        f"SIGTERM: stopped after step {step}, saved; run it again"
    )
    _, err = run([*args, f"--config.max_steps={step}"], environment)
    assert f"resumed from step {step}" in err


def test_sigterm_before_the_first_step(tiny_root, environment, tmp_path):
    args = [
        f"--config=tests/helpers/tiny.py:{tiny_root}",
        f"--workdir={tmp_path / 'run'}",
    ]
    process = start(args, environment)
    assert wait_for(
        (tmp_path / "run").exists, process, 300
    )  # jax is loaded, data is read
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "step 1:" not in err


# A cluster's run of one process: JAX's service is there, and takes SIGTERM.
CONNECTED = """
import os, signal, sys, time
import jax
from vse_jax.distributed import cluster, preemption
join = jax.distributed.initialize
jax.distributed.initialize = lambda **_: join(
    "localhost:" + sys.argv[1], 1, 0, cluster_detection_method="deactivate"
)
cluster.started_by_cluster = lambda: True
if sys.argv[2] == "listens":
    preemption.listen()
cluster.connect(None, None, None)
preemption.connected()
os.kill(os.getpid(), signal.SIGTERM)
for _ in range(100):
    preemption.check()
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("listens", "code"), [("listens", 75), ("does not", -signal.SIGTERM)]
)
def test_sigterm_in_a_cluster_of_one(listens, code, environment):
    program = [sys.executable, "-c", CONNECTED]
    run([str(free_port()), listens], environment, code, program)
