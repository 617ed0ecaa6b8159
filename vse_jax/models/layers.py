"""What networks are made of: initializers, linear layers, norms, convolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.nn.initializers import Initializer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vse_jax.ops import conv2d

# ---- Initializers --------------------------------------------------------------------
#
# They are called as JAX's own, (key, shape, dtype), and draw from the same
# distributions, with NumPy on the host. JAX's are programs: XLA compiles those of one
# model for 10 s and more, on every machine and for every mesh; NumPy takes less than 1.


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return _initializer(
        lambda rng, shape: bound * (2 * rng.random(shape, np.float32) - 1)
    )


def normal(deviation: float) -> Initializer:
    """N(0, deviation²)."""
    return _initializer(
        lambda rng, shape: deviation * rng.standard_normal(shape, np.float32)
    )


def constant(value: float) -> Initializer:
    """Every number is `value`."""
    return _initializer(lambda _, shape: np.full(shape, value, np.float32))


def _initializer(draw) -> Initializer:
    def init(key, shape, dtype=np.float32, out_sharding=None):
        def on_host(seed):
            rng = np.random.default_rng(np.asarray(seed))
            return np.asarray(draw(rng, shape), dtype)

        seed = jax.random.key_data(key)
        if isinstance(seed, jax.core.Tracer):  # as where only shapes are wanted
            result = jax.ShapeDtypeStruct(shape, dtype)
            return jax.pure_callback(on_host, result, seed, vmap_method="sequential")
        return on_host(seed)

    return init


# ---- Layers --------------------------------------------------------------------------


def linear(
    in_features: int,
    out_features: int,
    *,
    init: str = "torch",
    use_bias: bool = True,
    dtype: np.dtype,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer.

    Args:
        in_features, out_features: sizes.
        init: 'torch' for PyTorch's default, U(±1/√in), bias included; 'xavier' for
            U(±√(6 / (in + out))) and 'transformer' for N(0, 0.02²), both with bias 0.
        use_bias: adds a bias.
        dtype: of the product.
        rngs: stream `params` initializes it.
    """
    bias_init = constant(0.0)
    if init == "torch":
        kernel_init = bias_init = uniform(in_features**-0.5)
    elif init == "xavier":
        kernel_init = uniform((6 / (in_features + out_features)) ** 0.5)
    elif init == "transformer":
        kernel_init = normal(0.02)
    else:
        raise ValueError(f"no init {init!r}")
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


def embedding(
    count: int, features: int, *, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Embed:
    """A transformer's embedding, initialized from N(0, 0.02²)."""
    return nnx.Embed(
        count, features, embedding_init=normal(0.02), dtype=dtype, rngs=rngs
    )


def layer_norm(
    features: int, epsilon: float = 1e-6, *, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Layer normalization whose statistics are float32; epsilon: SigLIP's."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )


class BatchNorm(nnx.Module):
    """Normalizes the last axis over all others, with PyTorch's running statistics.

    Differs from `nnx.BatchNorm` where PyTorch does: the running variance is the
    unbiased one. Under `jit` the statistics are those of the global batch, however it
    is sharded.

    Args:
        features: size of the last axis.
        frozen: always use the running statistics and never change them; scale and bias
            remain trainable (the official treatment of a pretrained CNN).
        scale: initial scale.
    """

    momentum = 0.1  # share of the new batch in the running statistics
    epsilon = 1e-5

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
        """Returns x normalized, in x's dtype.

        Args:
            x: activations.
            train: use this batch's statistics and update the running ones.
            mask: rows that count in the statistics (all by default; at least one).
        """
        mean, var = self.mean[...], self.var[...]
        if train and not self.frozen:
            mean, var = self._batch_statistics(x.astype(jnp.float32), mask)
        scale, shift = self._scale_and_shift(mean, var)
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)

    def of_conv(
        self, conv: "Conv", x: Float[Array, "b h w i"], *, train: bool
    ) -> Float[Array, "b oh ow o"]:
        """Returns self(conv(x)).

        With running statistics the scale is part of the kernel, gradients included:
        the convolution's result is neither kept nor read again for that of the scale.
        """
        if train and not self.frozen:
            return self(conv(x), train=True)
        scale, shift = self._scale_and_shift(self.mean[...], self.var[...])
        return conv(x, scale) + shift.astype(x.dtype)

    def _scale_and_shift(self, mean, var):
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return scale, self.bias[...] - mean * scale

    def _batch_statistics(self, x, mask):
        weights = jnp.ones(x.shape[:-1]) if mask is None else mask.astype(np.float32)
        weights = weights[..., None]
        axes = tuple(range(x.ndim - 1))
        count = weights.sum()
        mean = (x * weights).sum(axes) / count
        var = (jnp.square(x - mean) * weights).sum(axes) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            running.set_value(running[...] + self.momentum * (batch - running[...]))
        return mean, var


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0), whose gradient reads the result, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


relu.defvjp(_relu_forward, lambda y, cotangent: (jnp.where(y > 0, cotangent, 0),))


class Conv(nnx.Module):
    """Square convolution without bias: see `ops.conv2d`.

    Its initialization lets gradients keep their size (He et al., 2015, with the fan
    out; not truncated).
    """

    def __init__(self, in_channels, out_channels, size, *, stride=1, groups=1, rngs):
        shape = (size, size, in_channels // groups, out_channels)
        init = normal(math.sqrt(2 / (size * size * out_channels)))
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.stride, self.groups = stride, groups
        self.mesh: Mesh | None = None  # over whose devices images are: see `place`

    def __call__(
        self, x: Float[Array, "b h w i"], scale: Float[Array, " o"] | None = None
    ) -> Float[Array, "b oh ow o"]:
        """Returns the convolution of x, times a scale for each channel of it."""
        kernel = self.kernel[...] if scale is None else self.kernel[...] * scale
        # (Where a module was initialized and not placed yet, this is a NumPy array.)
        kernel = jnp.asarray(kernel, x.dtype)
        return conv2d(x, kernel, self.stride, self.groups, self.mesh)
