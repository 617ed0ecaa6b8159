"""A pooling of your own: attention with a weight for each element and dimension.

Where GPO's weights depend on a value's rank alone, these depend on the values: a
two-layer MLP scores every dimension of every element; a softmax over the set makes
weights of the scores (as in ESA: Zhu et al., 2023).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.models.layers import linear


class ElementwiseAttentionPool(nnx.Module):
    """features: size of the vectors, and of the result."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        hidden, float32 = max(features // 4, 1), np.dtype(np.float32)
        self.hidden = linear(features, hidden, dtype=float32, rngs=rngs)
        self.score = linear(hidden, features, dtype=float32, rngs=rngs)

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        real = mask[..., None]
        features = jnp.where(real, features.astype(jnp.float32), 0)
        scores = self.score(jax.nn.relu(self.hidden(features)))
        weights = jax.nn.softmax(scores, axis=1, where=real)
        return (weights * features).sum(axis=1)
