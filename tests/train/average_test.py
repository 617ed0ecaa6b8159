"""The moving average of the weights: what it is, and that a resume goes on with it."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.steps import batch_of, numbers, trainer_of
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.runs import Checkpoints
from vse_jax.commands.evaluate import evaluate
from vse_jax.distributed.mesh import batch_sharding, put_batch
from vse_jax.metrics_logger import read_metrics
from vse_jax.train import train


@pytest.fixture
def config(tiny_config):
    tiny.quick(tiny_config)
    tiny_config.optimizer.ema = 0.3
    return tiny_config


@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_that_of_the_weights_and_of_running_statistics(config, devices):
    """0.3, and less in the first steps: 2 / 11, 3 / 12, 4 / 13 (0.31)."""
    config.optimizer.rules = (("^text/bert/", 0.0, -1), (".*", 1.0, 0))
    trainer = trainer_of(config, devices)
    state = trainer.initial_state()
    batch = put_batch(batch_of(config), batch_sharding(trainer.mesh))
    expected = numbers(state.weights)
    for decay in (2 / 11, 3 / 12, 0.3):
        state, _ = trainer.step(state, batch, trainer.optimizer.trainable_groups(0))
        for path, x in numbers(state.weights).items():
            expected[path] = decay * expected[path] + (1 - decay) * x
    weights, model = numbers(state.weights), numbers(trainer.model(state))
    for path, x in model.items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-6)
        if path.startswith("params/text/bert/"):  # frozen, and kept once
            assert path not in state.average
            np.testing.assert_array_equal(x, weights[path])
    assert not np.array_equal(
        model["params/image/fc/kernel"], weights["params/image/fc/kernel"]
    )
    restored = trainer.restored(trainer.model(state), trainer.rest(state))
    for path, x in weights.items():
        np.testing.assert_array_equal(flatten(restored.weights)[path], x)
    for path, x in numbers(state.average).items():
        np.testing.assert_array_equal(restored.average[path], x)


def test_without_one_nothing_is_kept(tiny_config):
    trainer = trainer_of(tiny.quick(tiny_config))
    assert jax.tree.leaves(trainer.abstract.average) == []
    assert trainer.rest(trainer.abstract).keys() == {"step", "opt_state", "rng"}


def test_a_resume_is_exact_and_the_best_model_is_the_average(
    config, tmp_path, without_figures
):
    config.data.dev_captions, config.num_epochs = 40, 1
    for folder, stops in (("whole", [6]), ("resumed", [3, 6])):
        for config.max_steps in stops:
            train(config, tmp_path / folder)
    trainer = trainer_of(config, 8)
    shapes = trainer.abstract_model, trainer.rest(trainer.abstract)
    states = []
    for folder in ("whole", "resumed"):
        with Checkpoints(tmp_path / folder, read_only=True) as checkpoints:
            states.append(trainer.restored(*checkpoints.restore_latest(*shapes)))
            best, about = checkpoints.restore_best(trainer.abstract_model)
    whole, resumed = (numbers(x) for x in (states[0].weights, states[1].weights))
    for path, x in whole.items():
        np.testing.assert_array_equal(resumed[path], x, err_msg=path)
    average, again = (numbers(state.average) for state in states)
    for path, x in average.items():
        np.testing.assert_array_equal(again[path], x, err_msg=path)
        assert path.startswith("batch_stats/") or not np.array_equal(x, whole[path])
        if about.best_step == 6:
            np.testing.assert_array_equal(flatten(best)[path], x)

    # What was validated is what is evaluated later.
    config.eval.split = "dev"
    evaluate(config, tmp_path / "resumed")
    rows = read_metrics(tmp_path / "resumed")
    rsum = max(row["eval/dev/rsum"] for row in rows if "eval/dev/rsum" in row)
    assert about.best_rsum == rsum
    assert f'"rsum": {rsum}' in (tmp_path / "resumed" / "eval_dev.json").read_text()
