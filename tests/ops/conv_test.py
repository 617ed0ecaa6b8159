"""Convolutions: their gradients are those of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.ops import conv


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (7, 10)])
@pytest.mark.parametrize(("cores", "devices"), [(1, 1), (2, 1), (2, 2)])  # three ways
def test_gradients_are_those_of_jax(size, stride, sides, cores, devices, monkeypatch):
    monkeypatch.setattr(conv, "_cores", lambda: cores)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
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

    found = value_and_gradients(lambda x, k: conv.convolution(x, k, stride), x, kernel)
    expected = value_and_gradients(plain, x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("columns", "channels", "busy"),
    [(64, 64, 0.5), (128, 64, 1), (32, 128, 1), (32, 192, 0.75), (8, 512, 1)],
)
def test_a_task_has_64_columns_and_64_channels(columns, channels, busy):
    assert conv._busy_cores(columns, channels, cores=2) == busy


def test_gradients_of_a_product_are_those_of_jax():
    rng = np.random.default_rng(0)
    shapes = ((50, 3), (3, 5), (50, 5))
    x, kernel, cotangent = (jnp.asarray(rng.normal(size=s), "float32") for s in shapes)
    found, gradients_of = jax.vjp(conv.product, x, kernel)
    expected, plain_gradients_of = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(found, expected)
    for a, b in zip(
        gradients_of(cotangent), plain_gradients_of(cotangent), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
