"""Sort a set's values in every dimension and sum them with one weight per rank.

`sorted_pool_reference` says what is computed. A sort branches on the values that it
compares, which keeps a device's lanes apart; the two ways here do the same work for all
values, side by side over sets and dimensions. One dimension of a set of three, with the
weights a, b, c of the ranks 0, 1, 2:

    values   2  7  5
    ranks    2  0  1     how many values come before each one
    ordered  7  5  2     each value, put at its rank
    sum      7a + 5b + 2c
    gradient c  a  b     the weight of each value's rank, looked up

Sets of up to 64 are counted: all pairs are compared, once for the ranks and once to put
the values there; a weight is looked up by the bits of its rank. Larger sets go through
a sorting network, k · log² k comparisons; going back through it brings each value its
weight. `python -m benchmarks.sorted_pool` compares both with a sort.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vse_jax.ops.plain import is_plain

_MAX_COUNTED = 64
# Loops over fewer vectors LLVM unrolls, and then computes one value at a time on a CPU.
_UNROLLED = 16
# Dimensions at a time, on a CPU and elsewhere: what a core's cache (or a TPU's vector
# memory) holds, and the width of a TPU's registers. Elsewhere counting takes all at
# once: chunks would only have to be copied, and libtpu expects 1.1 million cycles with
# them, 0.19 million without (16 sets of 36 × 1024, v5e).
_COUNTED_CHUNKS, _NETWORK_CHUNKS = (128, None), (32, 128)


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
        mask: the elements of each set; other vectors neither count nor get a gradient,
            whatever they hold.
    """
    if is_plain():
        return sorted_pool_reference(features, weights, mask)
    features = jnp.where(mask[..., None], features, 0)
    if weights.ndim == 2:
        weights = weights[..., None]
    pool = by_counting if features.shape[1] <= _MAX_COUNTED else by_network
    return pool(features, weights, mask)


def sorted_pool_reference(features, weights, mask):
    """The same by JAX's sort."""
    mask = mask[..., None]
    ordered = -jnp.sort(jnp.where(mask, -features, jnp.inf), axis=1, stable=True)
    weights = weights.reshape(*weights.shape[:2], -1)
    used = jnp.arange(features.shape[1])[:, None] < mask.sum(axis=1, keepdims=True)
    return jnp.where(used, weights * jnp.where(used, ordered, 0), 0).sum(axis=1)


# ---- Chunks of dimensions ------------------------------------------------------------


def _by_platform(function: Callable, chunks: tuple[int | None, int | None], *arguments):
    """`function(chunk, *arguments)` with the chunk for a CPU or the one elsewhere."""
    on_cpu, elsewhere = chunks
    return jax.lax.platform_dependent(
        *arguments,
        cpu=functools.partial(function, on_cpu),
        default=functools.partial(function, elsewhere),
    )


def _split(
    x: Float[Array, "b k _"], chunk: int | None, dimensions: int
) -> Float[Array, "n b k _"]:
    """Chunks of the dimensions; what all of them share (_ = 1) is repeated."""
    sets, size, own = x.shape
    if chunk is None or dimensions % chunk:
        return x[None]
    if own == 1:
        return jnp.broadcast_to(x, (dimensions // chunk, *x.shape))
    return x.reshape(sets, size, -1, chunk).transpose(2, 0, 1, 3)


def _joined(x: Float[Array, "n b k c"]) -> Float[Array, "b k d"]:
    _, sets, size, _ = x.shape
    return x.transpose(1, 2, 0, 3).reshape(sets, size, -1)


# ---- Counting ------------------------------------------------------------------------


@jax.custom_vjp
def by_counting(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    """`sorted_pool` of features that are 0 where the mask is False."""
    return _count_forward(features, weights, mask)[0]


def _count_forward(features, weights, mask):
    def forward(chunk, features, weights, mask):
        shape = features.shape
        weights = _split(weights, chunk, shape[2])
        if chunk is not None and shape[1] < _UNROLLED:
            fill = (0, 0), (0, _UNROLLED - shape[1])
            features, mask = jnp.pad(features, (*fill, (0, 0))), jnp.pad(mask, fill)
        values = _split(features, chunk, shape[2])
        # Loops keep XLA from joining these steps, which computes ranks more than once.
        ranks = jax.lax.map(lambda x: _counted_ranks(_sortable(x, mask)), values)
        ordered = jax.lax.map(lambda of: _by_rank(*of), (values, ranks))
        ranks, ordered = ranks[:, :, : shape[1]], ordered[:, :, : shape[1]]
        total = (weights * ordered).sum(axis=2, keepdims=True)
        # Ranks and ordered values stay as they lie in chunks: `backward` wants them so.
        return _joined(total)[:, 0], ranks.reshape(shape), ordered.reshape(shape)

    total, ranks, ordered = _by_platform(
        forward, _COUNTED_CHUNKS, features, weights, mask
    )
    return total, (ranks, ordered, weights, mask)


def _count_backward(residuals, cotangent):
    def backward(chunk, ranks, ordered, weights, mask, cotangent):
        own, dimensions = weights.shape[2], cotangent.shape[1]
        cotangent = _split(cotangent[:, None], chunk, dimensions)
        shape = len(cotangent), *ranks.shape[:2], cotangent.shape[3]
        ranks, ordered = ranks.reshape(shape), ordered.reshape(shape)
        weights = _split(weights, chunk, dimensions)
        of_features = jax.lax.map(
            lambda of: _looked_up(of[0], of[1]) * of[2], (weights, ranks, cotangent)
        )
        of_features = jnp.where(mask[..., None], _joined(of_features), 0)
        of_weights = ordered * cotangent
        if own == 1:
            return of_features, of_weights.sum(axis=(0, 3))[..., None]
        return of_features, _joined(of_weights)

    gradients = _by_platform(backward, _COUNTED_CHUNKS, *residuals, cotangent)
    return *gradients, None


by_counting.defvjp(_count_forward, _count_backward)


def _sortable(
    values: Float[Array, "b k d"], mask: Bool[Array, "b k"]
) -> Int[Array, "b k d"]:
    """Integers in the order of the values: NaN first, what the mask excludes last.

    A float's bits without its sign are in its order already.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0, values), jnp.int32)
    limits = jnp.iinfo(jnp.int32)
    numbers = jnp.where(bits < 0, bits ^ limits.max, bits)
    numbers = jnp.where(jnp.isnan(values), limits.max, numbers)
    return jnp.where(mask[..., None], numbers, limits.min + 1)


def _counted_ranks(keys: Int[Array, "b k d"]) -> UInt8[Array, "b k d"]:
    """The number of elements that come before each one, in descending order."""
    index = jnp.arange(keys.shape[1])[:, None]
    ranks = jnp.zeros(keys.shape, jnp.uint8)
    for other in range(keys.shape[1]):
        key = keys[:, other : other + 1]
        # Of equal values the one at the lower index comes first.
        ranks += (key > keys - (other < index)).astype(jnp.uint8)
    return ranks


def _by_rank(
    values: Float[Array, "b k d"], ranks: UInt8[Array, "b k d"]
) -> Float[Array, "b k d"]:
    """The values by their ranks: comparisons again, quicker than a scatter."""
    positions = jnp.arange(values.shape[1], dtype=ranks.dtype)[:, None]
    ordered = jnp.zeros(values.shape, values.dtype)
    for index in range(values.shape[1]):
        one = slice(index, index + 1)
        ordered = jnp.where(ranks[:, one] == positions, values[:, one], ordered)
    return ordered


def _looked_up(
    weights: Float[Array, "b k _"], ranks: UInt8[Array, "b k d"]
) -> Float[Array, "b k d"]:
    """Each rank's weight: its bits choose among halves, quarters, …"""
    rows = [weights[:, i : i + 1] for i in range(weights.shape[1])]
    bit = 0
    while len(rows) > 1:
        odd = (ranks >> bit) & 1 == 1
        pairs = itertools.zip_longest(rows[::2], rows[1::2], fillvalue=rows[-1])
        rows = [jnp.where(odd, second, first) for first, second in pairs]
        bit += 1
    return jnp.broadcast_to(rows[0], ranks.shape)


# ---- A sorting network ---------------------------------------------------------------


def by_network(
    features: Float[Array, "b k d"],
    weights: Float[Array, "b k _"],
    mask: Bool[Array, "b k"],
) -> Float[Array, "b d"]:
    """`sorted_pool` of features that are 0 where the mask is False."""
    keys = jnp.where(mask[..., None], features, jnp.finfo(features.dtype).min)
    used = jnp.arange(features.shape[1]) < mask.sum(axis=1, keepdims=True)
    total = _network(keys, jnp.where(used[..., None], weights, 0))
    # A NaN compares with nothing, and may have ended among the padding.
    return jnp.where(jnp.isnan(features).any(axis=1), jnp.nan, total)


@jax.custom_vjp
def _network(
    keys: Float[Array, "b k d"], weights: Float[Array, "b k _"]
) -> Float[Array, "b d"]:
    """Σᵣ weights[:, r] · (r-th largest key), of full sets."""

    def run(chunk, keys):
        values = _split(keys, chunk, keys.shape[2])
        return _joined(jax.lax.map(lambda x: _sorted(x)[0], values))

    return (weights * _by_platform(run, _NETWORK_CHUNKS, keys)).sum(axis=1)


def _network_forward(keys, weights):
    def run(chunk, keys, weights):
        parts = [_split(x, chunk, keys.shape[2]) for x in (keys, weights)]
        results = jax.lax.map(lambda of: _sorted_and_looked_up(*of), tuple(parts))
        return [_joined(y) for y in results]

    ordered, of_each = _by_platform(run, _NETWORK_CHUNKS, keys, weights)
    return (weights * ordered).sum(axis=1), (of_each, ordered, weights)


def _network_backward(residuals, cotangent):
    of_each, ordered, weights = residuals
    of_weights = ordered * cotangent[:, None]
    if weights.shape[2] == 1:  # shared by all dimensions
        of_weights = of_weights.sum(axis=2, keepdims=True)
    return of_each * cotangent[:, None], of_weights


_network.defvjp(_network_forward, _network_backward)


def _sorted_and_looked_up(
    keys: Float[Array, "b k d"], weights: Float[Array, "b k _"]
) -> tuple[Float[Array, "b k d"], Float[Array, "b k d"]]:
    """Each dimension in descending order, and the weight of each key's rank.

    The network's exchanges, last one first, bring the weights from the ranks to the
    keys. The same loop does both, so that nothing has to be kept of the exchanges.
    """
    ordered, stayed = _sorted(keys)
    weights = _filled(jnp.broadcast_to(weights, keys.shape), 0.0)
    steps = zip(_steps(weights.shape[1]), stayed, strict=True)
    for (_, distance), stay in reversed(list(steps)):
        weights = _exchange(weights, stay, distance)
    return ordered, weights[:, : keys.shape[1]]


def _sorted(keys: Float[Array, "b k d"]) -> tuple[Float[Array, "b k d"], list[Array]]:
    """Each dimension in descending order, by Batcher's bitonic network (1968).

    A step compares every position with the one `distance` further on. Blocks of a
    length become sorted, by turns in descending and in ascending order, from two
    halves that are; in the end there is one block.

    Returns:
        The keys in order, and for each step which pairs stayed as they were.
    """
    size = keys.shape[1]
    keys = _filled(keys, -jnp.inf)
    stayed = []
    for length, distance in _steps(keys.shape[1]):
        first, second = _pairs(keys, distance)
        positions = np.arange(0, keys.shape[1], 2 * distance)
        descending = (positions & length == 0)[:, None, None]
        stayed.append((first >= second) == descending)
        keys = _exchange(keys, stayed[-1], distance)
    return keys[:, :size], stayed


def _filled(x: Float[Array, "b k d"], value: float) -> Float[Array, "b whole d"]:
    """Sets of the next power of two."""
    missing = (1 << (x.shape[1] - 1).bit_length()) - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=value)


def _steps(whole: int) -> list[tuple[int, int]]:
    """(length, distance) of the network's steps."""
    bits = range(1, whole.bit_length())
    return [(1 << bit, 1 << low) for bit in bits for low in reversed(range(bit))]


def _pairs(x: Float[Array, "b k d"], distance: int) -> tuple[Array, Array]:
    sets, _, dimensions = x.shape
    pairs = x.reshape(sets, -1, 2, distance, dimensions)
    return pairs[:, :, 0], pairs[:, :, 1]


def _exchange(
    x: Float[Array, "b k d"], stay: Bool[Array, "b _ _ d"], distance: int
) -> Float[Array, "b k d"]:
    """Swaps the pairs that do not stay."""
    first, second = _pairs(x, distance)
    pairs = jnp.where(stay, first, second), jnp.where(stay, second, first)
    return jnp.stack(pairs, axis=2).reshape(x.shape)
