"""The order of what a run does: batches put on the devices, steps, profile."""

import contextlib

import jax
import pytest

from tests.helpers import tiny
from vse_jax import train as train_module
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.runs import Checkpoints
from vse_jax.data.loader import TrainData
from vse_jax.metrics_logger import MetricsLogger
from vse_jax.train import train


def test_two_batches_are_ahead_and_the_profile_has_the_steps_it_was_told(
    tiny_config, tmp_path, monkeypatch, without_figures
):
    """Also where a run ends before the last of them, or goes on in their middle.

    A number is where the loop waits, in that step's `add`, for the step before.
    """
    seen = []

    @contextlib.contextmanager
    def trace(folder):
        assert folder == tmp_path / "run" / "profile"
        seen.append("start")
        yield
        seen.append("stop")

    def noted(event, function):
        return lambda *args: (seen.append(event(*args)), function(*args))[1]

    monkeypatch.setattr(jax.profiler, "trace", trace)
    put = noted(lambda *_: "put", train_module.put_batch)
    monkeypatch.setattr(train_module, "put_batch", put)
    add = noted(lambda _logger, step, _scalars: step, MetricsLogger.add)
    monkeypatch.setattr(MetricsLogger, "add", add)
    tiny.quick(tiny_config)
    for steps, profile in ((1, None), (4, "3:9"), (7, "2:6")):
        tiny_config.max_steps, tiny_config.profile = steps, profile
        train(tiny_config, tmp_path / "run")
    assert seen == [
        *("put", 1),
        *("put", "put", 2, "start", "put", 3, 4, "stop"),
        *("start", "put", "put", 5, "put", 6, "stop", 7),
    ]


def test_a_bad_image_of_the_next_epoch_loses_nothing_of_this_one(
    tiny_config, tmp_path, monkeypatch, without_figures
):
    steps, make = 30, TrainData._batch

    def batch(data, share, step):
        if step == steps:  # the first one of the second epoch
            raise InputError("bad.jpg: not an image")
        return make(data, share, step)

    monkeypatch.setattr(TrainData, "_batch", batch)
    tiny.quick(tiny_config)
    with pytest.raises(InputError, match="bad"):
        train(tiny_config, tmp_path / "run")
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == steps
        assert checkpoints.progress().best_step == steps
