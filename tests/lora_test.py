"""Adapters: nothing at first, then all that moves; elsewhere an ordinary model."""

import math

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import batch_of, numbers, trainer_of
from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.runs import Checkpoints
from vse_jax.distributed.mesh import batch_sharding, put_batch
from vse_jax.optimizer import Optimizer
from vse_jax.train import train

ADAPTED = {
    f"text/bert/layers/0/attention/{name}/kernel" for name in ("query", "key", "value")
}


@pytest.fixture
def config(tiny_config):
    """Adapters of three matrices; all else of BERT and of the images is locked."""
    tiny.quick(tiny_config)
    tiny_config.optimizer.lora.update(
        {"on": "attention/(query|key|value)/", "rank": 3, "alpha": 6.0}
    )
    tiny_config.optimizer.rules = (
        ("^lora/", 1.0, 0),
        ("^text/linear/", 1.0, 0),
        (".*", 0.0, -1),
    )
    return tiny_config


@pytest.mark.parametrize("devices", [1, 8])
def test_the_model_begins_as_it_was_and_only_adapters_move(config, devices):
    trainer = trainer_of(config, devices)
    state = trainer.initial_state()
    assert state.params["lora"].keys() == ADAPTED
    start = numbers(state.params)
    begun = numbers(trainer.model(state)["params"])
    assert begun.keys() == {p for p in start if not p.startswith("lora/")}
    for path, x in begun.items():
        np.testing.assert_array_equal(x, start[path], err_msg=path)
    batch = put_batch(batch_of(config), batch_sharding(trainer.mesh))
    for _ in range(2):
        groups = trainer.optimizer.trainable_groups(0)
        state, _ = trainer.step(state, batch, groups)
    now, model = numbers(state.params), numbers(trainer.model(state)["params"])
    for path, x in start.items():
        # The projection is trained as ever; a locked encoder's values stay bit by bit.
        moves = path.startswith(("lora/", "text/linear/"))
        assert moves != np.array_equal(now[path], x), path
    for path in ADAPTED:
        update = now[f"lora/{path}/a"] @ now[f"lora/{path}/b"]
        np.testing.assert_allclose(model[path], start[path] + 6 / 3 * update, atol=1e-6)
        assert np.abs(update).max() > 1e-4
    for path in begun.keys() - ADAPTED:
        np.testing.assert_array_equal(model[path], now[path])


def test_a_frozen_matrix_has_no_gradient_and_no_moments(config):
    trainer = trainer_of(config)
    paths = trainer.optimizer.trainable_paths()
    assert not ADAPTED & paths
    assert {f"lora/{path}/{x}" for path in ADAPTED for x in "ab"} < paths
    largest = max(x.size for x in jax.tree.leaves(trainer.abstract.opt_state))
    assert largest == 32 * 32  # text/linear/kernel; an adapter has 32 × 3


def test_a_regex_that_matches_nothing_is_one_line(config):
    config.optimizer.lora.on = "^image/vit/"
    with pytest.raises(InputError) as error:
        trainer_of(config)
    assert str(error.value) == (
        "config.optimizer.lora.on: '^image/vit/' matches no matrix of the model"
    )


@pytest.mark.parametrize("ema", [None, 0.3])
def test_a_resume_is_exact_and_others_read_an_ordinary_model(
    config, ema, tmp_path, without_figures
):
    config.data.dev_captions, config.num_epochs, config.optimizer.ema = 40, 1, ema
    for folder, stops in (("whole", [4]), ("resumed", [2, 4])):
        for config.max_steps in stops:
            train(config, tmp_path / folder)
    trainer, states = trainer_of(config), []
    for folder in ("whole", "resumed"):
        with Checkpoints(tmp_path / folder, read_only=True) as checkpoints:
            found = checkpoints.restore_latest(
                trainer.abstract_model, trainer.rest(trainer.abstract)
            )
            about = checkpoints.progress()
        states.append(trainer.restored(*found))
    whole, resumed = states
    for tree in ("weights", "average", "opt_state"):
        expected, there = (numbers(getattr(x, tree)) for x in (whole, resumed))
        assert expected.keys() == there.keys()
        for path, x in expected.items():
            np.testing.assert_array_equal(there[path], x, err_msg=path)
    assert bool(whole.average) == (ema is not None)
    assert about.best_step in (2, 4)
    loaded = load_model(config, tmp_path / "resumed")
    assert jax.tree.structure(loaded.arrays) == jax.tree.structure(
        trainer.abstract_model
    )
    if about.best_step == 4:
        for path, x in numbers(trainer.model(resumed)).items():
            np.testing.assert_array_equal(flatten(loaded.arrays)[path], x)


def test_one_rule_gives_each_layer_its_rate():
    """The last of three layers has the rule's, and what is below them has the least."""
    layers = {str(n): {"kernel": np.zeros((2, 2))} for n in range(3)}
    params = {"vit": {"layers": layers, "positions": np.zeros(2), "norm": np.zeros(2)}}
    config = draft_rules((r"^vit/(?!norm)(?:layers/(\d+)/)?", 0.5, 0, 0.8))
    optimizer = Optimizer(config, params)
    expected = {
        "vit/layers/0/kernel": 0.5 * 0.8**2,
        "vit/layers/1/kernel": 0.5 * 0.8,
        "vit/layers/2/kernel": 0.5,
        "vit/positions": 0.5 * 0.8**3,
    }
    factors = optimizer.groups["0"].factors
    assert factors.keys() == expected.keys()
    for path, factor in expected.items():
        assert math.isclose(factors[path], factor)
    ones = {path: np.ones_like(x) for path, x in flatten(params).items()}
    state, groups = optimizer.init(params), optimizer.trainable_groups(0)
    new, _, _ = optimizer.update(ones, state, flatten(params), 1.0, groups)
    for path, factor in (expected | {"vit/norm": 1.0}).items():
        # Adam's first step is the rate itself.
        np.testing.assert_allclose(-new[path], factor, rtol=1e-5)
    with pytest.raises(InputError, match="is 'layers' in vit/layers/0/kernel, not the"):
        Optimizer(draft_rules(("^vit/([a-z]+)", 0.5, 0, 0.8)), params)


def draft_rules(rule):
    config = draft().optimizer
    config.rules, config.weight_decay = (rule, (".*", 1.0, 0)), 0.0
    return config
