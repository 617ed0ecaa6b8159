"""GPOs that differ from the paper's in one thing, for the study of poolings.

--config.image.pool=studies.pools:Colder --config.text.pool=studies.pools:Colder
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vse_jax.models.gpo import GPO


class FromMaximum(GPO):
    """Starts near the maximum, where GPO starts near the average.

    The first rank's score is raised by 0.6, so that its weight begins at about 0.9 in a
    set of 49; what the BiGRU adds to that is learned as ever.
    """

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        weights = super().weights(lengths, size)
        weights = jnp.where(jnp.arange(size) == 0, jnp.exp(6.0), 1) * weights
        return weights / weights.sum(axis=1, keepdims=True)


class Colder(GPO):
    """Its softmax has a tenth of GPO's temperature, 0.01: scores reach further."""

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        weights = super().weights(lengths, size)
        # Divided by the largest first: powers of small numbers underflow.
        weights = (weights / weights.max(axis=1, keepdims=True)) ** 10
        return weights / weights.sum(axis=1, keepdims=True)
