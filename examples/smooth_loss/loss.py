"""A loss of your own: a smooth maximum over the negatives that violate the margin.

The triplet loss takes a query's hardest negative, and only that one gets a gradient.
Here all do that are hard: log(1 + Σ exp(τ · violation)) / τ over the negatives, which
is the hardest one's violation for large τ. τ is learned.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class LogSumExpLoss(nnx.Module):
    """margin: of the hinge, config.loss.margin."""

    def __init__(self, margin: float):
        self.margin = margin
        self.log_scale = nnx.Param(np.log(np.float32(20)))

    def __call__(self, similarity, positives, negatives, epoch):
        scale = jnp.exp(jnp.clip(self.log_scale[...], 0, np.log(100.0)))
        violation = scale * (self.margin + similarity - positives[:, None])
        violation = jnp.where(negatives, violation, -jnp.inf)
        none = jnp.zeros((len(positives), 1))  # the 1 of log(1 + …)
        every = jnp.concatenate([none, violation], axis=1)
        return jax.nn.logsumexp(every, axis=1) / scale
