"""Groups, freezing and schedules against PyTorch's optimizers and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import common
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten, merge
from vse_jax.optimizer import Optimizer, Schedule

SHAPES = {"image/backbone/kernel": (3, 2), "image/fc/kernel": (2, 4), "text/b": (5,)}
RULES = (("^image/backbone/", 0.1, 1), (".*", 1.0, 0))  # the CNN is unfrozen in epoch 1
RATE = 0.05


def tree(arrays):
    return {
        "image": {
            "backbone": {"kernel": arrays["image/backbone/kernel"]},
            "fc": {"kernel": arrays["image/fc/kernel"]},
        },
        "text": {"b": arrays["text/b"]},
    }


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()}


def optimizer_config(**fields):
    c = draft().optimizer
    c.rules = RULES
    c.weight_decay = 0.1
    c.update(fields)
    return c


def torch_optimizer(config, params):
    groups = [
        {"params": [x], "lr": RATE * (0.1 if "backbone" in p else 1.0)}
        for p, x in params.items()
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=RATE, weight_decay=config.weight_decay)
    for group, path in zip(groups, params, strict=True):
        on_cnn = "backbone" in path
        group["weight_decay"] = config.weight_decay if on_cnn else 0.0
    return torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=config.nesterov)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "adamw"},
        {"name": "sgd", "nesterov": True, "weight_decay_on": "^image/backbone/"},
    ],
)
def test_steps_equal_pytorch_with_a_group_that_is_unfrozen_later(fields):
    config = optimizer_config(**fields)
    start = arrays(0)
    params = tree(start)
    optimizer = Optimizer(config, params)
    state = optimizer.init(params)
    peers = {p: torch.nn.Parameter(torch.tensor(np.array(x))) for p, x in start.items()}
    peer = torch_optimizer(config, peers)
    for step in range(6):
        epoch = step // 3
        groups = optimizer.trainable_groups(epoch)
        assert groups == (("1",) if epoch == 0 else ("0", "1"))
        grads = {p: 10 * g for p, g in arrays(step + 1).items()}
        chosen = {p: grads[p] for p in optimizer.select(params, groups)}
        before = optimizer.select(params, groups)
        new, state, norm = optimizer.update(chosen, state, before, RATE, groups)
        params = merge(params, new)
        for path, x in peers.items():
            x.grad = torch.tensor(np.array(grads[path])) if path in chosen else None
        peer_norm = torch.nn.utils.clip_grad_norm_(peers.values(), config.clip)
        peer.step()
        np.testing.assert_allclose(norm, peer_norm, rtol=1e-6)
        for path, x in flatten(params).items():
            # optax takes 1 − 0.999^t in float32, PyTorch in float64: up to 3e-5 of
            # a step of RATE, in each of six steps.
            np.testing.assert_allclose(x, peers[path].detach(), rtol=0, atol=9e-6)
        if epoch == 0:
            frozen = params["image"]["backbone"]["kernel"]
            np.testing.assert_array_equal(frozen, start["image/backbone/kernel"])
    if config.name == "adamw":
        assert int(state["0"][0].count) == 3  # counts from its unfreeze_epoch
        assert int(state["1"][0].count) == 6


def test_a_group_that_is_never_trained_has_no_state():
    config = optimizer_config(rules=(("^image/", 0.0, -1), (".*", 1.0, 0)))
    optimizer = Optimizer(config, tree(arrays(0)))
    assert optimizer.trainable_groups(100) == ("1",)
    assert list(optimizer.init(tree(arrays(0)))) == ["1"]


def test_a_parameter_without_a_rule_is_named():
    config = optimizer_config(rules=(("^image/", 1.0, 0),))
    with pytest.raises(InputError, match="no rule matches parameter text/b"):
        Optimizer(config, tree(arrays(0)))


def _parameters_of_every_group():
    backbone = {f"layer{k}": {"kernel": np.zeros(2)} for k in (1, 2, 3, 4)}
    text = {"bert": {"kernel": np.zeros(2)}, "linear": {"kernel": np.zeros(2)}}
    return {"image": {"backbone": backbone}, "text": text}


def test_schedule_of_the_published_grid_recipe():
    config = draft()
    schedule = Schedule(config, steps_per_epoch=10, ramp_steps=11)
    steps = jnp.array([0, 9, 10, 15, 20, 149, 150, 249])
    np.testing.assert_allclose(
        schedule.loss_scale(steps), [1, 1, 0, 5 / 11, 1, 1, 1, 1], rtol=1e-6
    )
    assert config.loss.vse_mean_warmup_epochs == 1
    np.testing.assert_allclose(schedule.rate(steps), [5e-4] * 6 + [5e-5] * 2, rtol=1e-6)
    optimizer = Optimizer(
        config.optimizer,
        _parameters_of_every_group(),
    )
    assert optimizer.trainable_groups(0) == ("4", "5")
    assert optimizer.trainable_groups(1) == ("0", "1", "2", "3", "4", "5")


def test_other_data_change_how_long_an_epoch_is_and_not_which_it_is():
    """37 steps were made of epochs of 15, then the rest is one of epochs of 10."""
    config = draft()
    first = Schedule(config, steps_per_epoch=15, ramp_steps=16)
    epochs = first.epoch(37)
    schedule = Schedule(config, 10, 11, 37, epochs)
    steps = [37, 46, 47, 56, 57]
    assert [schedule.epoch(step) for step in steps] == [2, 2, 3, 3, 4]
    assert [schedule.steps(epoch) for epoch in (2, 3, 25)] == [37, 47, 267]
    config.loss.ramp_epoch = 3
    schedule = Schedule(config, 10, 11, 37, epochs)
    np.testing.assert_allclose(
        schedule.loss_scale(jnp.array([46, 47, 52, 57])), [1, 0, 5 / 11, 1], rtol=1e-6
    )


@pytest.mark.parametrize("max_steps", [None, 60])
def test_a_cosine_falls_to_nothing_where_the_run_ends(max_steps):
    """From the end of a warm-up, which is linear: 20 of 100 steps, or of 60."""
    config = draft()
    config.num_epochs, config.max_steps = 10, max_steps
    config.optimizer.update({"schedule": "cosine", "warmup_steps": 20})
    schedule = Schedule(config, steps_per_epoch=10, ramp_steps=11)
    end = max_steps or 100
    assert schedule.total_steps == end
    middle = 20 + (end - 20) // 2
    steps = jnp.array([0, 9, 19, 20, middle, end])
    expected = np.array([0.05, 0.5, 1.0, 1.0, 0.5, 0.0]) * 5e-4
    np.testing.assert_allclose(schedule.rate(steps), expected, atol=1e-10)
    config.max_steps = 3  # all of it is warm-up
    schedule = Schedule(config, steps_per_epoch=10, ramp_steps=11)
    rates = schedule.rate(jnp.arange(3))
    np.testing.assert_allclose(rates, np.array([0.05, 0.1, 0.15]) * 5e-4, rtol=1e-6)


def test_the_step_drop_may_begin_with_a_warm_up():
    config = draft()
    config.optimizer.warmup_steps = 4
    schedule = Schedule(config, steps_per_epoch=10, ramp_steps=11)
    steps = jnp.array([0, 3, 4, 149, 150])
    expected = np.array([0.25, 1.0, 1.0, 1.0, 0.1]) * 5e-4
    np.testing.assert_allclose(schedule.rate(steps), expected, rtol=1e-6)


def test_gradual_unfreezing_begins_at_the_top():
    config = optimizer_config(rules=common.grid_rules(1, 1))
    optimizer = Optimizer(config, _parameters_of_every_group())
    assert [len(optimizer.trainable_groups(epoch)) for epoch in range(6)] == [
        2,
        3,
        4,
        5,
        6,
        6,
    ]
