"""Convolutions: values and gradients are those of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.ops import conv


def check(function, plain, *shapes):
    """Compares the values of two functions, and their gradients in all arguments."""
    rng = np.random.default_rng(0)
    arguments = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, arguments):
        value, gradients_of = jax.vjp(function, *arguments)
        return value, gradients_of(jnp.sin(value))

    found = value_and_gradients(function, arguments)
    expected = value_and_gradients(plain, arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (7, 10)])
# XLA's kernel as it is; the kernel's gradient on several devices, and on one.
@pytest.mark.parametrize(("task", "devices"), [(4, 1), (64, 2), (64, 1)])
def test_equals_the_reference(size, stride, sides, task, devices, monkeypatch):
    monkeypatch.setattr(conv, "_TASK", task)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    check(
        lambda x, kernel: conv.conv2d(x, kernel, stride),
        lambda x, kernel: conv.conv2d_reference(x, kernel, stride),
        (2, *sides, 3),
        (size, size, 3, 5),
    )


@pytest.mark.parametrize(
    ("size", "stride", "groups"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 1), (4, 4, 1), (3, 1, 2), (1, 1, 2)],
)
def test_products_patches_and_groups_equal_the_reference(size, stride, groups):
    check(
        lambda x, kernel: conv.conv2d(x, kernel, stride, groups),
        lambda x, kernel: conv.conv2d_reference(x, kernel, stride, groups),
        (2, 7, 10, 4),
        (size, size, 4 // groups, 6),
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("groups", "inputs"), [(32, 8), (6, 4), (2, 64), (5, 40)])
def test_merged_groups_equal_the_reference(stride, groups, inputs):
    """Four times as many channels as one; a number that 128 does not divide; too wide
    to merge; a prime number."""
    channels = groups * inputs
    check(
        lambda x, kernel: conv.merged_groups(x, kernel, stride, groups),
        lambda x, kernel: conv.conv2d_reference(x, kernel, stride, groups),
        (2, 5, 4, channels),
        (3, 3, inputs, channels),
    )


def test_gradients_of_a_product_are_those_of_jax():
    check(conv.matmul, jnp.matmul, (50, 3), (3, 5))
