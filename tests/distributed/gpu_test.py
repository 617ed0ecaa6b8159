"""What only an NVIDIA GPU can show: `make test-gpu`, on a machine that has one."""

import signal

import pytest

from tests.helpers.programs import assert_same_run, rows, run, start, wait_for

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(environment):
    """Of programs that compute on the GPU, compiled as a user's are."""
    compiled_quickly = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {k: v for k, v in environment.items() if k not in compiled_quickly}
    return kept | {"JAX_PLATFORMS": "cuda"}


@pytest.fixture
def train(tiny_root, tmp_path):
    """train(name, *fields): arguments of a run of seven steps in tmp_path/name.

    It runs under a transfer guard: config.debug is on in tests.helpers.tiny.
    """

    def arguments(name, *fields):
        config = f"--config=tests/helpers/tiny.py:{tiny_root}"
        return [config, f"--workdir={tmp_path / name}", "--config.max_steps=7", *fields]

    return arguments


def test_tf32_differs_from_float32_by_rounding_only(train, on_gpu, tmp_path):
    losses = {}
    for precision in ("auto", "highest"):
        run(train(precision, f"--config.matmul_precision={precision}"), on_gpu)
        losses[precision] = rows(tmp_path / precision)[0]["train/loss"]
    difference = abs(losses["auto"] / losses["highest"] - 1)
    assert 0 < difference < 1e-2


def test_a_resume_ends_with_the_same_bits(train, on_gpu, tmp_path):
    deterministic = on_gpu | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    run(train("whole"), deterministic)
    process = start(train("stopped"), deterministic)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    assert wait_for(
        lambda: metrics.exists() and '"step": 3' in metrics.read_text(), process, 300
    )
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    _, err = run(train("stopped"), deterministic)
    assert "resumed from step" in err
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
