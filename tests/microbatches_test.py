"""Microbatches and rematerialisation: less memory, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import batch_of, region_config, set_up
from vse_jax.base.trees import flatten
from vse_jax.distributed.mesh import batch_sharding, put_batch
from vse_jax.models.build import abstract_model, build_model, merge_model


def descent(config, devices=1):
    """(metrics, gradients, batch statistics) of one step.

    It descends with rate 1, so the change of a parameter is its gradient.
    """
    config.optimizer.update({"name": "sgd", "learning_rate": 1.0, "clip": 1e9})
    config.optimizer.weight_decay = 0.0
    mesh, optimizer, state, step = set_up(config, devices)
    before = {path: np.array(x) for path, x in flatten(state.params).items()}
    batch = put_batch(batch_of(config), batch_sharding(mesh))
    state, metrics = step(state, batch, optimizer.trainable_groups(0))
    after = jax.device_get(flatten(state.params))
    gradients = {path: before[path] - after[path] for path in after}
    return jax.device_get(metrics), gradients, jax.device_get(state.batch_stats)


def assert_equal(found, expected):
    metrics, gradients, _ = expected
    np.testing.assert_allclose(found[0]["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(found[0]["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    scale = max(np.abs(g).max() for g in gradients.values())
    for path, gradient in found[1].items():
        np.testing.assert_allclose(
            gradient, gradients[path], rtol=1e-5, atol=1e-5 * scale, err_msg=path
        )


def exact_config():
    """Nothing random, and statistics that do not depend on the batch."""
    config = tiny.quick(draft(tiny.get_config()))
    config.batch_size = 32
    config.image.backbone.batch_norm = "frozen"
    return config


@pytest.fixture(scope="module")
def whole():
    return descent(exact_config())


@pytest.mark.parametrize(("count", "devices"), [(2, 1), (4, 8)])
def test_any_number_of_microbatches_gives_the_same_gradients(whole, count, devices):
    config = exact_config()
    config.microbatches = count
    assert_equal(descent(config, devices), whole)


def test_rematerialised_blocks_give_the_same_gradients(whole):
    config = exact_config()
    config.remat = True
    assert_equal(descent(config), whole)


def test_what_is_random_or_counted_is_so_with_both():
    """Dropout, size augmentation and trained statistics: equal with remat, too."""
    config = draft(tiny.get_config())
    config.text.pool = "avg"
    config.microbatches = 2
    expected = descent(config)
    config.remat = True
    found = descent(config)
    assert_equal(found, expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        found[2],
        expected[2],
    )


def test_statistics_are_those_of_each_microbatch_in_turn():
    """The running ones: first those of the even rows, then those of the odd rows."""
    config = region_config()
    config.microbatches = 2
    _, _, stats = descent(config)
    model = build_model(
        config, rngs=nnx.Rngs(params=jax.random.split(jax.random.key(0))[0])
    )
    encode = nnx.jit(lambda model, batch: model.encode_images(batch, train=True))
    batch = batch_of(config)
    for half in range(2):
        encode(model, {name: jnp.asarray(x[half::2]) for name, x in batch.items()})
    for name, statistic in stats["image"]["mlp"]["bn"].items():
        running = getattr(model.image.mlp.bn, name)[...]
        np.testing.assert_allclose(statistic, running, rtol=1e-5, atol=1e-6)


def kept_bytes(config) -> int:
    """What the backward pass of the towers needs, but for the parameters."""
    graphdef, model = abstract_model(config)

    def forward(model, batch):
        def embed(params):
            towers = merge_model(graphdef, model | {"params": params})
            return towers(batch, train=True, rngs=nnx.Rngs(dropout=0, size=1))

        return jax.vjp(embed, model["params"])[1]

    kept = jax.tree.leaves(jax.eval_shape(forward, model, batch_of(config)))
    parameters = {(x.shape, x.dtype) for x in jax.tree.leaves(model["params"])}
    return sum(
        x.size * x.dtype.itemsize for x in kept if (x.shape, x.dtype) not in parameters
    )


def test_rematerialised_blocks_keep_less():
    config = draft(tiny.get_config())
    assert kept_bytes(config) < 3.8e6
    config.remat = True
    assert kept_bytes(config) < 2.3e6


def test_microbatches_need_less_memory():
    config = exact_config()
    config.batch_size, config.text.vocab_size = 256, 32
    peaks = []
    for count in (1, 8):
        config.microbatches = count
        _, optimizer, state, step = set_up(config)
        lowered = step.lower(state, batch_of(config), optimizer.trainable_groups(0))
        peaks.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert peaks[1] < 0.3 * peaks[0]
