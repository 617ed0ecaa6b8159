"""Initializers draw from their distributions, by a key; BatchNorm is PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from vse_jax.models.layers import BatchNorm, Conv, constant, normal, uniform

KERNEL = (3, 3, 16, 64)
KERNEL_OF_CONV = Conv(16, 64, 3, rngs=nnx.Rngs(0)).kernel[...]


@pytest.mark.parametrize(
    ("init", "deviation", "largest"),
    [
        (uniform(0.5), 0.5 / 3**0.5, 0.5),
        (normal(0.02), 0.02, np.inf),
        (lambda *_: KERNEL_OF_CONV, (2 / (9 * 64)) ** 0.5, np.inf),
        (constant(0.2), 0, 0.2),
    ],
)
def test_the_distributions(init, deviation, largest):
    values = init(jax.random.key(0), KERNEL)
    assert values.dtype == np.float32
    # 9,216 draws: both are known to about 1 %.
    assert values.std() == pytest.approx(deviation, rel=0.05, abs=1e-7)
    assert (
        abs(values.mean() - (largest if deviation == 0 else 0))
        < 0.05 * deviation + 1e-6
    )
    assert abs(values).max() <= np.float32(largest)


def test_a_key_gives_the_same_values_inside_of_a_program():
    init = normal(1.0)
    first, second = (init(jax.random.key(seed), (5,)) for seed in (0, 1))
    assert not np.array_equal(first, second)
    keys = jax.random.split(jax.random.key(0))
    both = jax.jit(jax.vmap(lambda key: init(key, (5,))))(keys)
    np.testing.assert_array_equal(both, [init(key, (5,)) for key in keys])


def test_training_equals_pytorch_over_two_steps():
    x = np.random.default_rng(0).normal(2, 3, (2, 10, 4)).astype(np.float32)
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm1d(4)
    for batch in x:
        expected = theirs(torch.from_numpy(batch)).detach().numpy()
        actual = ours(jnp.asarray(batch), train=True)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean, atol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var, rtol=1e-5)

    expected = theirs.eval()(torch.from_numpy(x[0])).detach().numpy()
    np.testing.assert_allclose(ours(jnp.asarray(x[0])), expected, atol=1e-5)


def test_masked_rows_do_not_count():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    mask = np.arange(5) < np.array([5, 2, 3])[:, None]
    whole, part = BatchNorm(4), BatchNorm(4)
    expected = part(jnp.asarray(x[mask]), train=True)
    actual = whole(jnp.asarray(x), train=True, mask=jnp.asarray(mask))
    np.testing.assert_allclose(actual[mask], expected, atol=1e-5)
    np.testing.assert_allclose(whole.var[...], part.var[...], atol=1e-6)


def test_a_frozen_norm_keeps_its_statistics():
    norm = BatchNorm(4, frozen=True)
    x = jnp.full((3, 4), 5.0)
    np.testing.assert_array_equal(norm(x, train=True), norm(x))
    np.testing.assert_array_equal(norm.mean[...], 0)
