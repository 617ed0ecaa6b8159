"""Batch normalisation with PyTorch's running statistics."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

_MOMENTUM = 0.1  # share of the new batch in the running statistics
_EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Normalises the last axis over all others.

    Differs from `nnx.BatchNorm` where PyTorch does: the running variance is the
    unbiased one. Under `jit` the statistics are those of the global batch, however it
    is sharded.

    Args:
        features: size of the last axis.
        frozen: always use the running statistics and never change them; scale and bias
            remain trainable (the official treatment of a pretrained CNN).
        scale: start value of the scale.
    """

    def __init__(self, features: int, *, frozen: bool = False, scale: float = 1.0):
        self.scale = nnx.Param(np.full(features, scale, np.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32))
        self.mean = nnx.BatchStat(np.zeros(features, np.float32))
        self.var = nnx.BatchStat(np.ones(features, np.float32))
        self.frozen = frozen

    def __call__(
        self,
        x: Float[Array, "*rows c"],
        *,
        train: bool = False,
        mask: Bool[Array, "*rows"] | None = None,
    ) -> Float[Array, "*rows c"]:
        """Returns x normalised, in x's dtype.

        Args:
            x: activations.
            train: use this batch's statistics and update the running ones.
            mask: rows that count in the statistics (all by default; at least one).
        """
        if train and not self.frozen:
            mean, var = self._update(x.astype(jnp.float32), mask)
        else:
            mean, var = self.mean[...], self.var[...]
        # As one scale and one shift: two element-wise operations on the big array.
        scale = self.scale[...] * lax.rsqrt(var + _EPSILON)
        shift = self.bias[...] - mean * scale
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)

    def _update(self, x, mask):
        weights = jnp.ones(x.shape[:-1]) if mask is None else mask.astype(np.float32)
        weights = weights[..., None]
        axes = tuple(range(x.ndim - 1))
        count = weights.sum()
        mean = (x * weights).sum(axes) / count
        var = (jnp.square(x - mean) * weights).sum(axes) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            running.set_value(running[...] + _MOMENTUM * (batch - running[...]))
        return mean, var
