import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.ops import sorted_pool
from vse_jax.ops.sorted_pool import sorted_pool_reference

SIZES = [9, 80]  # one for each way to sort


def sets(size, seed=0, batch=4, features=6):
    """Integer-valued features, so that there are ties; masks with holes."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (batch, size, features)).astype(np.float32)
    mask = rng.random((batch, size)) < 0.7
    mask[0] = True
    mask[1] = np.arange(size) == 2  # a single element
    weights = rng.normal(size=(batch, size)).astype(np.float32)
    return jnp.asarray(values), jnp.asarray(weights), jnp.asarray(mask)


@pytest.mark.parametrize("features", [6, 256])  # 256: chunks of 128
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_a_sort(size, shared, features):
    values, weights, mask = sets(size, features=features)
    if not shared:
        weights = jax.random.normal(jax.random.key(1), values.shape)
    cotangent = jax.random.normal(jax.random.key(0), (4, features))

    expected, vjp_expected = jax.vjp(
        lambda x, w: sorted_pool_reference(x, w, mask), values, weights
    )
    actual, vjp = jax.vjp(lambda x, w: sorted_pool(x, w, mask), values, weights)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    of_values, of_weights = vjp(cotangent)
    of_values_expected, of_weights_expected = vjp_expected(cotangent)
    if size > 64:
        of_values = of_equals(values, of_values)
        of_values_expected = of_equals(values, of_values_expected)
    np.testing.assert_allclose(of_values, of_values_expected, atol=1e-5)
    np.testing.assert_allclose(of_weights, of_weights_expected, atol=1e-5)


def of_equals(values, gradient):
    """The gradients of equal values, which a network may have in any order, sorted."""
    return np.take_along_axis(gradient, np.lexsort((gradient, values), axis=1), axis=1)


@pytest.mark.parametrize("size", SIZES)
def test_padding_may_hold_anything(size):
    values, weights, mask = sets(size)
    spoilt = jnp.where(mask[..., None], values, jnp.nan)

    def total(x, w):
        return jnp.square(sorted_pool(x, w, mask)).sum()

    for a, b in zip(
        jax.grad(total, (0, 1))(values, weights),
        jax.grad(total, (0, 1))(spoilt, weights),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_a_nan_in_a_set_is_not_hidden(size):
    values, weights, mask = sets(size)
    assert np.isnan(sorted_pool(values.at[0, 3, 2].set(jnp.nan), weights, mask)[0, 2])


def test_zeros_of_either_sign_are_equal():
    values = jnp.array([-0.0, 0.0, -0.0, 1.0])[None, :, None]
    weights = jnp.array([[4.0, 3.0, 2.0, 1.0]])
    gradient = jax.grad(lambda x: sorted_pool(x, weights, jnp.ones((1, 4), bool)).sum())
    np.testing.assert_array_equal(gradient(values)[0, :, 0], [3, 2, 1, 4])


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFFFFFFF])
def test_a_nan_of_either_sign_is_not_hidden_by_padding(bits):
    nan = np.array([bits], np.uint32).view(np.float32)[0]
    values = jnp.array([1.0, nan, 2.0, 3.0])[None, :, None]
    mask = jnp.array([[True, True, False, False]])
    pooled = sorted_pool(values, jnp.ones((1, 4)), mask)
    assert np.isnan(pooled).all()
