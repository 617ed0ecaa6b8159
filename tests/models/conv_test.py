"""Convolutions: their gradients are those of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models.conv import convolution


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (7, 10)])
def test_gradients_are_those_of_jax(size, stride, sides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *sides, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)
    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, x, kernel):
        value, gradients_of = jax.vjp(function, x, kernel)
        return value, gradients_of(jnp.sin(value))

    found = value_and_gradients(lambda x, k: convolution(x, k, stride), x, kernel)
    expected = value_and_gradients(plain, x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
