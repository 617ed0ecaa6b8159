"""The GPU's script, on a CPU and small."""

import json
import os
import time

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Job
from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError


@pytest.fixture(autouse=True)
def settings_stay(monkeypatch):
    """Those of this process, which the jobs would set for one of their own."""
    monkeypatch.setattr(gpu.our_rows, "prepare", lambda: None)
    monkeypatch.setattr(gpu.our_rows.runtime, "configure", lambda config: None)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("side", "kind"),
    [
        (gpu.our_steps, "region"),
        (gpu.pytorch_steps, "region"),
        (gpu.pytorch_steps, "grid"),
    ],
)
def test_steps_in_both_dtypes_differ_by_rounding(side, kind, monkeypatch):
    config = draft(tiny.get_config())
    config.image.kind, config.batch_size, config.data.max_tokens = kind, 4, 32
    config.image.update(feature_dim=24, max_regions=9, drop=0.0)
    config.image.backbone.update(
        block="v1", stem="conv7", layers=(1, 1), batch_norm="frozen"
    )
    config.text.update(vocab_size=30_522, dropout=0.0)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(gpu, "timed", lambda step: step())
    figures = dict(side(config))
    assert list(figures) == ["bfloat16", "float32", "peak bytes of both"]
    assert figures["bfloat16"] != figures["float32"]
    assert figures["bfloat16"] == pytest.approx(figures["float32"], rel=0.05)


def test_ways_to_sort_and_to_convolve(monkeypatch):
    """The convolutions' gradients are equal, whatever the way."""
    monkeypatch.setattr(gpu.sorted_pool, "repeated", lambda *_, **__: lambda: 1.0)
    ((name, figures),) = gpu.sorting(((2, 3, 4),))
    assert name == "2 × 3 × 4"
    assert figures == {way: [1.0] * 5 for way in gpu.sorted_pool.WAYS}

    monkeypatch.setattr(gpu, "timed", lambda call: call())
    found = dict(gpu.grouped_convolutions(((5, 64),), images=2))
    assert len(found) == 4
    plain, merged = (found[f"5² × 64, float32, {way}"] for way in gpu.CONVOLUTIONS)
    for one, other in zip(plain, merged, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_decoding(monkeypatch):
    monkeypatch.setattr(gpu.data_loading, "ROUNDS", 1)
    config = gpu.inputs.grid_config(size=16, batch_size=2)
    ((name, (rate,)),) = gpu.decoding(config, 2, [1])
    assert name == "1 threads"
    assert rate > 0


def test_outcomes_of_tests(monkeypatch, tmp_path):
    (tmp_path / "x_test.py").write_text(
        "import pytest\n"
        "@pytest.mark.golden\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_one(n): assert n == 1\n"
        "def test_unmarked(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = golden\npython_files=*.py"
    )
    monkeypatch.chdir(tmp_path)
    assert list(gpu.tests("golden")) == [
        ("x_test.py::test_one[1]", "PASSED"),
        ("x_test.py::test_one[2]", "FAILED"),
        ("exit code", 1),
    ]


# ---- Jobs in processes of their own ----


def quick(value):
    yield "value", value


def never_ends():
    time.sleep(100_000)
    yield "value", 0


def dies():
    yield "before", 1
    os._exit(3)


@pytest.mark.system
def test_what_was_measured_is_kept_and_the_rest_is_run_again(tmp_path):
    path = tmp_path / "gpu.json"

    def jobs():
        return json.loads(path.read_text())["jobs"]

    late, dead = Job(never_ends, (), 1), Job(dies, (), 600)
    gpu.measure({"a": late, "b": dead, "c": Job(quick, (1,), 600)}, path)
    assert jobs() == {
        "a": {"end": "killed after 1 s"},
        "b": {"before": 1, "end": "exit code 3, see its output"},
        "c": {"value": 1, "end": "done"},
    }
    again = Job(quick, (2,), 600)
    gpu.measure({"b": again, "c": again}, path)
    assert jobs()["b"] == {"before": 1, "value": 2, "end": "done"}
    assert jobs()["c"] == {"value": 1, "end": "done"}
    gpu.measure({"d": again}, path, seconds=0)
    assert "d" not in jobs()


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="no NVIDIA GPU"):
        gpu.main([])
