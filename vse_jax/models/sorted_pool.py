"""Sort a set's values in every dimension and sum them with one weight per rank.

One dimension of a set of three, with the weights a, b, c of the ranks 0, 1, 2:

    by sorting     values  2 7 5  →  sorted   7 5 2
                                     weights  a b c
                                     sum      7a + 5b + 2c

    by counting    values  2 7 5  →  ranks    2 0 1    how many values come before each
                                     weights  c a b    each value's, looked up by rank
                                     sum      2c + 7a + 5b

Counting compares all pairs of values and moves none of them: k² comparisons, which run
side by side over sets and dimensions. That is quicker than a sort as long as sets are
small.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Up to this set size, ranks are counted: python -m benchmarks.sorted_pool compares the
# time with that of a sort.
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
        weights: of the ranks, largest value first, for all dimensions or for each;
            those from a set's size on are unused.
        mask: the members of each set; other vectors neither count nor get a gradient,
            whatever they hold.
    """
    features = jnp.where(mask[..., None], features, 0)
    if weights.ndim == 2:
        weights = weights[..., None]
    small = features.shape[1] <= _MAX_COUNTED
    pool = _by_counting if small else _by_sorting
    return pool(features, weights, mask)


def _by_sorting(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    # Ascending order of the negated values keeps equal ones in place.
    ordered = -jnp.sort(jnp.where(mask[..., None], -features, jnp.inf), axis=1)
    valid = jnp.arange(features.shape[1]) < mask.sum(axis=1, keepdims=True)
    return (weights * jnp.where(valid[..., None], ordered, 0)).sum(axis=1)


@jax.custom_vjp
def _by_counting(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    return _count_forward(features, weights, mask)[0]


def _count_forward(features, weights, mask):
    ranks = _counted_ranks(jnp.where(mask[..., None], features, -jnp.inf))
    coefficients = jnp.take_along_axis(weights, ranks, axis=1)
    coefficients = jnp.where(mask[..., None], coefficients, 0)
    residuals = (features, ranks, coefficients, weights)
    return (coefficients * features).sum(axis=1), residuals


def _count_backward(residuals, cotangent):
    features, ranks, coefficients, weights = residuals
    by_rank = _sums_by_rank(
        features * cotangent[:, None], ranks, shared=weights.shape[2] == 1
    )
    return coefficients * cotangent[:, None], by_rank, None


_by_counting.defvjp(_count_forward, _count_backward)


def _counted_ranks(keys: Float[Array, "b k d"]) -> Int[Array, "b k d"]:
    """The number of set members that come before each one, in descending order."""
    index = jnp.arange(keys.shape[1])[:, None]
    ranks = jnp.zeros(keys.shape, jnp.int32)
    for other in range(keys.shape[1]):
        key = keys[:, other : other + 1]
        ranks += jnp.where(other < index, key >= keys, key > keys)
    return ranks


def _sums_by_rank(
    products: Float[Array, "b k d"], ranks: Int[Array, "b k d"], shared: bool
) -> Float[Array, "b k _"]:
    """The gradient of the weights: each rank's products, in each dimension.

    Weights that all dimensions share collect the products of all: [b, k, 1].

    The automatic gradient of the look-up would be a scatter-add, where all of a set's
    elements fall on the same k sums; going through the ranks is quicker on CPU.
    """
    axes = (1, 2) if shared else 1

    def of_rank(rank):
        return jnp.where(ranks == rank, products, 0).sum(axis=axes)

    sums = jax.lax.map(of_rank, jnp.arange(ranks.shape[1])).swapaxes(0, 1)
    return sums[..., None] if shared else sums
