"""Start values, drawn by NumPy on the host.

They are called as JAX's own initialisers are, (key, shape, dtype), and draw from the
same distributions. JAX's are programs: XLA compiles those of one model for 10 s and
more, on every machine and for every mesh, and NumPy has drawn them in less than one.
"""

import math

import jax
import numpy as np
from jax.nn.initializers import Initializer


def uniform(bound: float) -> Initializer:
    """Draws from U(-bound, bound)."""
    return _drawn(lambda rng, shape: bound * (2 * rng.random(shape, np.float32) - 1))


def normal(deviation: float) -> Initializer:
    """Draws from N(0, deviation²)."""
    return _drawn(lambda rng, shape: deviation * rng.standard_normal(shape, np.float32))


def he_normal(shape: tuple[int, int, int, int]) -> Initializer:
    """Draws a convolution's kernel [h, w, in, out] so that gradients keep their size.

    Source: He et al., 2015, with the fan out; without a cut at two deviations.
    """
    height, width, _, channels = shape
    return normal(math.sqrt(2 / (height * width * channels)))


def constant(value: float) -> Initializer:
    """Every number is `value`."""
    return _drawn(lambda _, shape: np.full(shape, value, np.float32))


def _drawn(draw) -> Initializer:
    def init(key, shape, dtype=np.float32, out_sharding=None):
        def on_host(seed):
            return np.asarray(
                draw(np.random.default_rng(np.asarray(seed)), shape), dtype
            )

        seed = jax.random.key_data(key)
        if isinstance(seed, jax.core.Tracer):  # as where only shapes are wanted
            result = jax.ShapeDtypeStruct(shape, dtype)
            return jax.pure_callback(on_host, result, seed, vmap_method="sequential")
        return on_host(seed)

    return init
