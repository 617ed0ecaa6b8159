"""Linear layers with PyTorch's default start values, and their initialiser."""

import jax
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer


def symmetric_uniform(bound: float) -> Initializer:
    """An initialiser that draws from U(-bound, bound)."""

    def init(key, shape, dtype=np.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(
    in_features: int,
    out_features: int,
    *,
    dtype: np.dtype,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Linear:
    """A dense layer that starts as `torch.nn.Linear` does: U(±1/√in), bias included."""
    init = symmetric_uniform(in_features**-0.5)
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )
