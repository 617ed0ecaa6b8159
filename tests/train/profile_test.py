"""config.profile: a trace of the steps that it names, and of no others."""

import contextlib

import jax

from vse_jax.metrics_logger import MetricsLogger
from vse_jax.train import train


def test_traces_the_steps_it_was_told(tiny_config, tmp_path, monkeypatch):
    """Also where a run ends before the last of them, or goes on in their middle."""
    seen = []

    @contextlib.contextmanager
    def trace(folder):
        assert folder == tmp_path / "run" / "profile"
        seen.append("start")
        yield
        seen.append("stop")

    add = MetricsLogger.add
    monkeypatch.setattr(jax.profiler, "trace", trace)
    monkeypatch.setattr(
        MetricsLogger,
        "add",
        lambda self, step, scalars: (seen.append(step), add(self, step, scalars)),
    )
    tiny_config.image.backbone.layers = (1,)
    for steps, profile in ((1, None), (4, "3:9"), (7, "2:6")):
        tiny_config.max_steps, tiny_config.profile = steps, profile
        train(tiny_config, tmp_path / "run")
    assert seen == [1, 2, "start", 3, 4, "stop", "start", 5, 6, "stop", 7]
