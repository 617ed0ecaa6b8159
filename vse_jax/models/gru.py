"""GRU over padded sequences, with PyTorch's equations."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.models.layers import symmetric_uniform

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
        init = symmetric_uniform(hidden**-0.5)
        self.input_kernel = nnx.Param(init(rngs.params(), (in_features, 3 * hidden)))
        self.input_bias = nnx.Param(init(rngs.params(), (3 * hidden,)))
        self.hidden_kernel = nnx.Param(init(rngs.params(), (hidden, 3 * hidden)))
        self.hidden_bias = nnx.Param(init(rngs.params(), (3 * hidden,)))
        self.reverse = reverse
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "b t i"], mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t h"]:
        """Returns the hidden state at every position; zero where the mask is False.

        Padding on the right neither changes nor starts the state, so the reversed
        direction begins at the last real position, as on a packed sequence.
        """
        # The input's share of all gates in one product, outside the sequential loop.
        inputs = self._product(x, self.input_kernel[...]) + self.input_bias[...]
        kernel = self.hidden_kernel[...].astype(self.dtype)
        bias = self.hidden_bias[...]

        def step(hidden, position):
            gates_x, valid = position
            x_reset, x_update, x_new = jnp.split(gates_x, 3, axis=-1)
            gates_h = jnp.split(self._product(hidden, kernel) + bias, 3, axis=-1)
            h_reset, h_update, h_new = gates_h
            reset = jax.nn.sigmoid(x_reset + h_reset)
            update = jax.nn.sigmoid(x_update + h_update)
            new = jnp.tanh(x_new + reset * h_new)
            new = (1 - update) * new + update * hidden
            valid = valid[:, None]
            return jnp.where(valid, new, hidden), jnp.where(valid, new, 0)

        start = jnp.zeros((x.shape[0], kernel.shape[0]), inputs.dtype)
        positions = (inputs.swapaxes(0, 1), mask.swapaxes(0, 1))
        _, states = jax.lax.scan(step, start, positions, reverse=self.reverse)
        return states.swapaxes(0, 1)

    def _product(self, x, kernel):
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


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
        self, x: Float[Array, "b t i"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t h"]]:
        """Returns the states of the forward and of the backward direction."""
        return self.forward(x, mask), self.backward(x, mask)
