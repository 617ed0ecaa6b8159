"""Generalized pooling operator (VSE∞, section 3): sort, then a learned weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.gru import BiGRU
from vse_jax.models.layers import linear
from vse_jax.ops import sorted_pool

TEMPERATURE = 0.1  # of the softmax over the ranks
_MASKED_SCORE = -1e4


class GPO(nnx.Module):
    """Pools a set of vectors with weights generated from the set's size alone.

    A small bidirectional GRU reads the positions 0 … n−1 of a set of n vectors and
    gives each rank its weight; every dimension is sorted on its own and summed with
    these. Average, max and K-max pooling are special cases. Runs in float32.

    Args:
        positions: size of the sinusoidal position encoding.
        hidden: size of the GRU's state.
    """

    is_sum = True

    def __init__(self, positions: int = 32, hidden: int = 32, *, rngs: nnx.Rngs):
        self.gru = BiGRU(positions, hidden, rngs=rngs)
        dtype = np.dtype(np.float32)
        self.linear = linear(hidden, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.positions = positions
        self.mesh: Mesh | None = None  # over whose devices sets are: see `place`

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        """Returns the pooled vectors, float32.

        Args:
            features: sets padded to k vectors; what padding holds has no effect.
            mask: the elements of each set, anywhere; at least one.
        """
        weights = self.weights(mask.sum(axis=1), mask.shape[1])
        return sorted_pool(features.astype(jnp.float32), weights, mask)

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        """Returns the weight of each rank (largest value first) for sets of `lengths`.

        The weights of a row sum to 1 and are 0 from its length on.
        """
        count, devices = lengths.shape[0], self.mesh.size if self.mesh else 1
        if isinstance(count, int) and count <= size * devices:
            return self._generate(lengths, size)
        # Fewer possible lengths than sets of a device, or a number of sets that is open
        # (--mode=export_model): generate each length's weights once.
        table = self._generate(jnp.arange(1, size + 1), size)
        return table[lengths - 1]

    def _generate(self, lengths, size):
        mask = jnp.arange(size) < lengths[:, None]
        encoding = jnp.asarray(position_encoding(size, self.positions))
        # One row: all lengths share the encoding and the GRU's product with it.
        forward, backward = self.gru(encoding[None], mask)
        scores = self.linear((forward + backward) / 2)[..., 0]
        scores = jnp.where(mask, scores, _MASKED_SCORE)
        return jax.nn.softmax(scores / TEMPERATURE, axis=-1)


def position_encoding(count: int, features: int) -> Float[np.ndarray, "{count} f"]:
    """Sines and cosines of the positions 0 … count−1, interleaved."""
    frequencies = 10000.0 ** (-np.arange(0, features, 2) / features)
    angles = np.arange(count)[:, None] * frequencies
    encoding = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return encoding.reshape(count, features).astype(np.float32)
