"""Sort a set's values in every dimension and sum them with one weight per rank."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Up to this set size, ranks are found by comparing all pairs. On CPU, forward and
# backward with XLA's sort take twice as long at [128, 36, 1024] and ten times as long
# at [128, 16, 512].
_MAX_COUNTED = 64


def sorted_pool(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k"] | Float[Array, "b k d"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    """Returns Σᵣ weights[:, r] · (r-th largest masked value in each dimension).

    Of equal values the one at the lower index ranks first, which matters for their
    gradients only.

    Args:
      features: sets of k vectors.
      weights: of the ranks, largest value first, for all dimensions or for each; those
        from a set's size on are unused.
      mask: the members of each set; other vectors neither count nor get a gradient,
        whatever they hold.
    """
    features = jnp.where(mask[..., None], features, 0)
    if weights.ndim == 2:
        weights = weights[..., None]
    if features.shape[1] <= _MAX_COUNTED:
        return _pool_by_rank(features, weights, mask)
    # Ascending order of the negated values keeps equal ones in place.
    ordered = -jnp.sort(jnp.where(mask[..., None], -features, jnp.inf), axis=1)
    valid = jnp.arange(features.shape[1]) < mask.sum(axis=1, keepdims=True)
    return (weights * jnp.where(valid[..., None], ordered, 0)).sum(axis=1)


@jax.custom_vjp
def _pool_by_rank(features, weights, mask):
    return _forward(features, weights, mask)[0]


def _forward(features, weights, mask):
    ranks = _ranks(jnp.where(mask[..., None], features, -jnp.inf))
    coefficients = jnp.take_along_axis(weights, ranks, axis=1)
    coefficients = jnp.where(mask[..., None], coefficients, 0)
    residuals = (features, ranks, coefficients, weights)
    return (coefficients * features).sum(axis=1), residuals


def _backward(residuals, cotangent):
    features, ranks, coefficients, weights = residuals
    # Weights that all dimensions share collect the gradients of all.
    axes = (1, 2) if weights.shape[2] == 1 else 1
    products = features * cotangent[:, None]

    # The automatic gradient of the look-up would be a scatter-add, where all of a set's
    # elements fall on the same k sums: up to three times slower on CPU.
    def weight_gradient(rank):
        return jnp.where(ranks == rank, products, 0).sum(axis=axes)

    by_rank = jax.lax.map(weight_gradient, jnp.arange(ranks.shape[1]))
    by_rank = by_rank.swapaxes(0, 1).reshape(weights.shape)
    return coefficients * cotangent[:, None], by_rank, None


_pool_by_rank.defvjp(_forward, _backward)


def _ranks(keys):
    """The number of set members that come before each one, in descending order."""
    index = jnp.arange(keys.shape[1])[:, None]
    ranks = jnp.zeros(keys.shape, jnp.int32)
    for other in range(keys.shape[1]):
        key = keys[:, other : other + 1]
        ranks += jnp.where(other < index, key >= keys, key > keys)
    return ranks
