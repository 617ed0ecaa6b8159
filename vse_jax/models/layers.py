"""Linear layers with PyTorch's default start values."""

import numpy as np
from flax import nnx

from vse_jax.models.initializers import uniform


def linear(
    in_features: int,
    out_features: int,
    *,
    dtype: np.dtype,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Linear:
    """A dense layer that starts as `torch.nn.Linear` does: U(±1/√in), bias included."""
    init = uniform(in_features**-0.5)
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )
