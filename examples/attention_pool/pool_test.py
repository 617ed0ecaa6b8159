"""What every pooling promises, and that a step trains this one."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.attention_pool.config import get_config
from examples.attention_pool.pool import ElementwiseAttentionPool
from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.forks import one_step


def test_padding_has_no_effect_and_weights_sum_to_one():
    pool = ElementwiseAttentionPool(6, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    mask = jnp.array([[True] * 5, [True] * 2 + [False] * 3])
    spoilt = jnp.where(mask[..., None], features, jnp.nan)
    np.testing.assert_array_equal(pool(spoilt, mask), pool(features, mask))
    np.testing.assert_allclose(pool(jnp.ones_like(features), mask), 1, rtol=1e-6)


def test_a_step_trains_it():
    config = draft(tiny.get_config())
    config.image.pool = config.text.pool = get_config().image.pool
    changed = one_step(config)
    assert {"image/gpool/score/kernel", "text/gpool/hidden/kernel"} <= changed
