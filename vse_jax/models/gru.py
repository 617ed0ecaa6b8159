"""GRU over padded sequences, with PyTorch's equations."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vse_jax.models.layers import uniform
from vse_jax.ops import per_device, recur

_FLOAT32 = np.dtype(np.float32)


class GRU(nnx.Module):
    """One layer, one direction.

    `nnx.GRUCell` has no bias inside the reset gate's product (PyTorch's b_hn), so it
    cannot hold PyTorch's weights; this one can. Gates lie in PyTorch's order: reset,
    update, new. `dtype` is that of the factors in products; the state is float32.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        *,
        reverse: bool = False,
        dtype: np.dtype = _FLOAT32,
        rngs: nnx.Rngs,
    ):
        init = uniform(hidden**-0.5)
        self.input_kernel = nnx.Param(init(rngs.params(), (in_features, 3 * hidden)))
        self.input_bias = nnx.Param(init(rngs.params(), (3 * hidden,)))
        self.hidden_kernel = nnx.Param(init(rngs.params(), (hidden, 3 * hidden)))
        self.hidden_bias = nnx.Param(init(rngs.params(), (3 * hidden,)))
        self.reverse = reverse
        self.dtype = dtype
        self.mesh: Mesh | None = None  # over whose devices the rows are: see `place`

    def __call__(
        self, x: Float[Array, "#b t i"], mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t h"]:
        """Returns the hidden state at every position; zero where the mask is False.

        Padding on the right neither changes nor starts the state, so the reversed
        direction begins at the last real position, as on a packed sequence.

        Args:
            x: the sequences, or the one [1, t, i] that all rows of the mask share.
            mask: the real positions.
        """
        return _scan([self], x, mask)[0]


class BiGRU(nnx.Module):
    """One layer, both directions."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        *,
        dtype: np.dtype = _FLOAT32,
        rngs: nnx.Rngs,
    ):
        self.forward = GRU(in_features, hidden, dtype=dtype, rngs=rngs)
        self.backward = GRU(in_features, hidden, reverse=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "#b t i"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t h"]]:
        """Returns the states of the forward and of the backward direction.

        x and mask: as for `GRU`. Both share one loop: a position is so little work that
        an accelerator spends its time on the loop itself.
        """
        forward, backward = _scan([self.forward, self.backward], x, mask)
        return forward, backward


def _scan(grus: Sequence[GRU], x, mask) -> list[Array]:
    """The states [b, t, h] of each of some GRUs of one size, side by side in one loop.

    The batch of x may be 1: it meets the states of all rows in the loop only.
    """
    definition, params = nnx.split(nnx.List(grus))

    def states(params, x, mask):
        return _states(nnx.merge(definition, params), x, mask)

    if x.shape[0] == mask.shape[0]:
        return per_device(grus[0].mesh, states, params, x, mask)

    def of_shared(params, mask):
        return states(*params, mask)

    return per_device(grus[0].mesh, of_shared, (params, x), mask)


def _states(grus: Sequence[GRU], x, mask) -> list[Array]:
    """`_scan` on one device.

    Inside, arrays are [t, g, b, ...]: g GRUs, t in the order in which each one reads.
    """
    dtype = grus[0].dtype
    # Turned before the product, which is larger.
    x, mask = x.swapaxes(0, 1), mask.swapaxes(0, 1)
    # The input's share of all gates in one product, outside the sequential loop.
    inputs = [
        jnp.matmul(
            _ordered(gru, x).astype(dtype),
            gru.input_kernel[...].astype(dtype),
            preferred_element_type=jnp.float32,
        )
        + gru.input_bias[...]
        for gru in grus
    ]
    masks = jnp.stack([_ordered(gru, mask) for gru in grus], axis=1)
    kernel = jnp.stack([gru.hidden_kernel[...] for gru in grus]).astype(dtype)
    bias = jnp.stack([gru.hidden_bias[...] for gru in grus])[:, None]
    states = recur(jnp.stack(inputs, axis=1), masks, kernel, bias, grus[0].mesh)
    return [_ordered(gru, states[:, i]).swapaxes(0, 1) for i, gru in enumerate(grus)]


def _ordered(gru, x):
    """x [t, ...] in the order in which the GRU reads it, and back again."""
    return x[::-1] if gru.reverse else x
