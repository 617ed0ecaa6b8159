import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights
from vse_jax.checkpoints.torch import keys
from vse_jax.models.gpo import GPO, position_encoding

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def gpo():
    return golden_weights.golden_module(lambda: GPO(rngs=nnx.Rngs(0)), keys.GPO, "gpo.")


@pytest.fixture(scope="module")
def pool(gpo):
    return jax.jit(lambda features, mask: gpo(features, mask))


@pytest.mark.parametrize("case", ["equal", "ragged", "long"])
def test_pooling_and_gradients_equal_the_official_ones(gpo, pool, case):
    golden = golden_weights.load("gpo", f"{case}.")
    features = jnp.asarray(golden["features"])
    lengths = jnp.asarray(golden["lengths"])
    size = features.shape[1]
    mask = jnp.arange(size) < lengths[:, None]

    weights = jax.jit(lambda n: gpo.weights(n, size))(lengths)
    np.testing.assert_allclose(weights, golden["weights"], atol=1e-5, rtol=0)
    pooled = pool(features, mask)
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5, rtol=0)

    def objective(module, features):
        return (module(features, mask) * golden["cotangent"]).sum()

    gradient = jax.jit(jax.grad(lambda x: objective(gpo, x)))(features)
    assert golden_weights.relative_error(gradient, golden["grad_features"]) < 1e-4
    gradients = golden_weights.parameter_gradients(
        gpo, lambda module: objective(module, features)
    )
    for name, gradient in keys.to_torch(gradients, keys.GPO).items():
        error = golden_weights.relative_error(gradient, golden[f"grad.{name}"])
        assert error < 1e-4, name


def test_positions_are_encoded_as_in_the_official_code():
    golden = golden_weights.load("gpo")["pe_d32_len40"]
    np.testing.assert_allclose(position_encoding(40, 32), golden, atol=1e-5)


def test_weights_sum_to_one_and_end_with_the_set(gpo):
    weights = np.asarray(gpo.weights(jnp.array([1, 3, 6]), 6))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert [np.count_nonzero(row) for row in weights] == [1, 3, 6]


def test_a_batch_larger_than_the_set_gets_the_same_weights(gpo):
    lengths = jnp.array([4, 1, 3, 2, 4, 4, 2])  # 7 sets of at most 4: looked up
    looked_up = gpo.weights(lengths, 4)
    generated = jnp.concatenate([gpo.weights(lengths[i : i + 1], 4) for i in range(7)])
    np.testing.assert_allclose(looked_up, generated, atol=1e-6)


def test_order_and_place_in_the_set_do_not_matter(pool):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 8, 5)).astype(np.float32)
    mask = np.arange(8) < np.array([8, 5, 1])[:, None]
    pooled = pool(jnp.asarray(features), jnp.asarray(mask))
    order = rng.permutation(8)
    shuffled = pool(jnp.asarray(features[:, order]), jnp.asarray(mask[:, order]))
    np.testing.assert_allclose(shuffled, pooled, atol=1e-6)


def test_padding_content_and_amount_do_not_matter(pool):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(3, 8, 5)).astype(np.float32)
    lengths = np.array([5, 2, 1])
    mask = np.arange(8) < lengths[:, None]
    pooled = pool(jnp.asarray(features), jnp.asarray(mask))
    spoilt = np.where(mask[..., None], features, np.inf)
    np.testing.assert_array_equal(pool(jnp.asarray(spoilt), jnp.asarray(mask)), pooled)
    shorter = pool(jnp.asarray(features[:, :5]), jnp.asarray(mask[:, :5]))
    np.testing.assert_allclose(shorter, pooled, atol=1e-6)
