"""The loss against its formula, and that a step trains its scale."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.smooth_loss.config import get_config
from examples.smooth_loss.loss import LogSumExpLoss
from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.forks import one_step


def test_it_nears_the_hardest_violation():
    similarity = jnp.array([[0.5, 0.45, 0.1], [0.2, 0.6, 0.1], [0.0, 0.3, 0.2]])
    negatives = ~jnp.eye(3, dtype=bool)
    loss = LogSumExpLoss(0.2)
    found = loss(similarity, jnp.diag(similarity), negatives, 0)
    violation = np.asarray(0.2 + similarity - jnp.diag(similarity)[:, None])
    terms = np.where(negatives, np.exp(20 * violation), 0)
    np.testing.assert_allclose(found, np.log1p(terms.sum(axis=1)) / 20, rtol=1e-5)
    loss.log_scale = nnx.Param(np.log(np.float32(100)))
    found = loss(similarity, jnp.diag(similarity), negatives, 0)
    np.testing.assert_allclose(found, [0.15, 0, 0.3], atol=0.01)


def test_a_step_trains_its_scale():
    config = draft(tiny.get_config())
    config.loss.name = get_config().loss.name
    assert "loss/log_scale" in one_step(config)
