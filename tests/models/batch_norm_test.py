import jax.numpy as jnp
import numpy as np
import torch

from vse_jax.models.batch_norm import BatchNorm


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
