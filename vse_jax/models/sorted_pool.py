"""Sort a set's values in every dimension and sum them with one weight per rank.

One dimension of a set of three, with the weights a, b, c of the ranks 0, 1, 2:

    by sorting     values  2 7 5  →  sorted   7 5 2
                                     weights  a b c
                                     sum      7a + 5b + 2c

    by counting    values  2 7 5  →  ranks    2 0 1    how many values come before each
                                     weights  c a b    each value's, looked up by rank
                                     sum      2c + 7a + 5b

Counting compares all pairs of values and moves none of them: k² comparisons, which run
side by side over sets and dimensions. Larger sets go through a sorting network, whose
k · log² k comparisons are the same for all values, so that these run side by side, too.
A sort finds its way by looking at its values: python -m benchmarks.sorted_pool compares
all three.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Up to this set size, ranks are counted.
_MAX_COUNTED = 64
# Dimensions that go through the network at a time: what a cache (or a TPU's vector
# memory) holds, and the width of a TPU's registers.
_CHUNK = 128


def sorted_pool(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k"] | Float[Array, "b k d"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    """Returns Σᵣ weights[:, r] · (r-th largest masked value in each dimension).

    Which of equal values ranks first matters for their gradients only: in sets of up to
    64 the one at the lower index does, in larger ones either may.

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
    pool = _by_counting if small else _by_network
    return pool(features, weights, mask)


def _by_network(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    sets, size, dimensions = features.shape
    keys = jnp.where(mask[..., None], features, -jnp.inf)
    chunk = _CHUNK if dimensions % _CHUNK == 0 else dimensions
    chunks = keys.reshape(sets, size, -1, chunk).transpose(2, 0, 1, 3)
    ordered = jax.lax.map(_sorted, chunks).transpose(1, 2, 0, 3).reshape(keys.shape)
    valid = jnp.arange(size) < mask.sum(axis=1, keepdims=True)
    total = (weights * jnp.where(valid[..., None], ordered, 0)).sum(axis=1)
    # A NaN compares with nothing, and may have ended among the padding.
    return jnp.where(jnp.isnan(features).any(axis=1), jnp.nan, total)


def _sorted(keys: Float[Array, "b k d"]) -> Float[Array, "b k d"]:
    """Each dimension in descending order, by Batcher's bitonic network (1968).

    A step compares every position with the one `distance` further on. Blocks of a
    length become sorted, by turns in descending and in ascending order, from two
    halves that are; in the end there is one block.
    """
    sets, size, dimensions = keys.shape
    whole = 1 << (size - 1).bit_length()  # the next power of two
    fill = ((0, 0), (0, whole - size), (0, 0))
    keys = jnp.pad(keys, fill, constant_values=-jnp.inf)
    length = 2
    while length <= whole:
        distance = length // 2
        while distance:
            pairs = keys.reshape(sets, -1, 2, distance, dimensions)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            places = np.arange(0, whole, 2 * distance)
            descending = (places & length == 0)[:, None, None]
            stay = (first >= second) == descending
            first, second = (
                jnp.where(stay, first, second),
                jnp.where(stay, second, first),
            )
            pairs = jnp.stack([first, second], axis=2)
            keys = pairs.reshape(sets, whole, dimensions)
            distance //= 2
        length *= 2
    return keys[:, :size]


@jax.custom_vjp
def _by_counting(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    return _count_forward(features, weights, mask)[0]


def _count_forward(features, weights, mask):
    ranks = _counted_ranks(jnp.where(mask[..., None], features, -jnp.inf))
    coefficients = jnp.where(mask[..., None], _looked_up(weights, ranks), 0)
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


def _looked_up(
    weights: Float[Array, "b k _"], ranks: Int[Array, "b k d"]
) -> Float[Array, "b k d"]:
    """Each rank's weight: comparisons again, quicker than a gather everywhere."""
    found = jnp.zeros(ranks.shape, weights.dtype)
    for rank in range(ranks.shape[1]):
        found = jnp.where(ranks == rank, weights[:, rank : rank + 1], found)
    return found


def _sums_by_rank(
    products: Float[Array, "b k d"], ranks: Int[Array, "b k d"], shared: bool
) -> Float[Array, "b k _"]:
    """The gradient of the weights: each rank's products, in each dimension.

    Weights that all dimensions share collect the products of all: [b, k, 1].

    The automatic gradient of the look-up would be a scatter-add, where all of a set's
    elements fall on the same k sums; going through the ranks is quicker.
    """
    axes = (1, 2) if shared else 1
    sums = jax.lax.platform_dependent(
        products,
        ranks,
        cpu=functools.partial(_in_a_loop, axes),
        default=functools.partial(_in_one_pass, axes),
    ).swapaxes(0, 1)
    return sums[..., None] if shared else sums


def _of_rank(axes, products, ranks, rank):
    return jnp.where(ranks == rank, products, 0).sum(axis=axes)


def _in_a_loop(axes, products, ranks):
    """For CPUs, where each sum would be a pass of its own over the arrays anyway."""
    each = jnp.arange(ranks.shape[1])
    return jax.lax.map(functools.partial(_of_rank, axes, products, ranks), each)


def _in_one_pass(axes, products, ranks):
    """For accelerators, which pay for every turn of a loop."""
    each = range(ranks.shape[1])
    return jnp.stack([_of_rank(axes, products, ranks, rank) for rank in each])
