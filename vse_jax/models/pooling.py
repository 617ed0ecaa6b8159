"""The aggregators by their config name: a set of vectors becomes one vector.

All take sets padded to k vectors, `features` [b, k, d], and `mask` [b, k], the members
of each set in any places (at least one); what padding holds has no effect. All compute
in float32. They are those that the paper compares with its GPO (VSE∞, section 5).
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.base.registry import Registry
from vse_jax.models.gpo import GPO
from vse_jax.models.gru import GRU
from vse_jax.models.initializers import normal
from vse_jax.models.layers import linear
from vse_jax.models.transformer import Attention, Perceptron, layer_norm
from vse_jax.ops.sorted_pool import sorted_pool

Members = tuple[Float[Array, "b k d"], Bool[Array, "b k"]]  # vectors, which are real


@runtime_checkable
class Pool(Protocol):
    """What a pooling does. It is an `nnx.Module`; padding must have no effect."""

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b p"]:
        """The pooled vectors, float32, of sets whose members `mask` tells."""
        ...


def make_pool(
    name: str,
    *,
    features: int,
    embed_dim: int,
    k: int,
    heads: int | None = None,
    ffn: int | None = None,
    rngs: nnx.Rngs,
    field: str = "pool",
) -> nnx.Module:
    """The aggregator that config.image.pool or config.text.pool names.

    Args:
        name: one of `POOLS`, or 'package.module:Class'.
        features: size of the vectors and, except for seq2seq, of the result.
        embed_dim: size of seq2seq's result.
        k: how many values kmax averages.
        heads, ffn: sizes of map; None: 64 features each, and 4 · features.
        rngs: stream `params` gives the start values.
        field: of the config, for errors.
    """
    heads = heads or (features // 64 if features % 64 == 0 else 1)
    sizes = {"embed_dim": embed_dim, "k": k, "heads": heads, "ffn": ffn or 4 * features}
    return POOLS.make(field, name, features=features, **sizes, rngs=rngs)


def attributions(
    pool: nnx.Module, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
) -> Float[Array, "b k d"]:
    """What each member of a set adds to its pooled vector, by Euler's theorem.

    Scaling all members scales the result of gpo, avg, max, kmax, gem, fspool and cls
    alike, so that result is Σ over the members of value · slope: of GPO, the weight of
    the value's rank times the value. Of other poolings the sum is not the result.
    """
    features = features.astype(jnp.float32)
    pooled, pull = jax.vjp(lambda x: pool(x, mask), features)
    (slope,) = pull(jnp.ones_like(pooled))
    return jnp.where(mask[..., None], slope * features, 0)


class AveragePool(nnx.Module):
    """The mean of the set."""

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        return jnp.mean(features.astype(jnp.float32), axis=1, where=mask[..., None])


class MaxPool(nnx.Module):
    """The largest value of each dimension; equal ones share its gradient."""

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        features = features.astype(jnp.float32)
        return jnp.where(mask[..., None], features, -jnp.inf).max(axis=1)


class KMaxPool(nnx.Module):
    """The mean of the k largest values of each dimension.

    A set of n < k vectors is averaged as a whole. (So it is in the original, whose loop
    then keeps that smaller k for the later sets of the batch; here sets are independent
    of each other.)
    """

    def __init__(self, k: int):
        self.k = k

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        used = jnp.minimum(self.k, mask.sum(axis=1, keepdims=True))
        weights = jnp.where(jnp.arange(mask.shape[1]) < used, 1 / used, 0)
        return sorted_pool(features.astype(jnp.float32), weights, mask)


class GeMPool(nnx.Module):
    """Generalised mean, (mean of x^p)^(1/p), p learned (Radenović et al., 2019).

    p starts at 3; 1 is the mean, ∞ the maximum. Values below 1e-6 count as 1e-6.
    """

    def __init__(self):
        # Its logarithm is what is learned: p stays above 0, where the root exists.
        self.log_p = nnx.Param(np.log(np.float32(3)))

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        p = jnp.exp(self.log_p[...])
        mask = mask[..., None]
        # Padding is replaced before the logarithm, whose gradient there would be NaN.
        positive = jnp.maximum(jnp.where(mask, features.astype(jnp.float32), 1), 1e-6)
        total = jax.nn.logsumexp(p * jnp.log(positive), axis=1, where=mask)
        return jnp.exp((total - jnp.log(mask.sum(axis=1))) / p)


class FSPool(nnx.Module):
    """Featurewise sort pooling (Zhang et al., ICLR 2020).

    Each dimension is sorted and summed with weights of its own: a piecewise linear
    function over the relative rank, 0 (largest) to 1, with a learned value at each of
    `pieces` + 1 knots.
    """

    def __init__(self, features: int, pieces: int = 20, *, rngs: nnx.Rngs):
        shape = (pieces + 1, features)
        self.knots = nnx.Param(normal(1.0)(rngs.params(), shape))

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        knots = jnp.asarray(self.knots[...])  # a NumPy array takes no traced index
        weights = interpolate(knots, mask.sum(axis=1), mask.shape[1])
        return sorted_pool(features.astype(jnp.float32), weights, mask)


def interpolate(
    knots: Float[Array, "knots d"], lengths, size: int
) -> Float[Array, "b {size} d"]:
    """Values at the ranks 0 … size−1 of sets of `lengths` [b], between their knots.

    The knots are spread evenly from a set's first rank to its last. What lies beyond a
    set's last rank repeats the last knot.
    """
    last = len(knots) - 1
    ratio = jnp.arange(size) / jnp.maximum(lengths - 1, 1)[:, None]
    place = last * jnp.minimum(ratio, 1)
    below = jnp.floor(place).astype(jnp.int32)
    share = (place - below)[..., None]
    above = jnp.minimum(below + 1, last)
    return (1 - share) * knots[below] + share * knots[above]


class FirstPool(nnx.Module):
    """The set's first vector: [CLS] of a BERT tower."""

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        return _member(features, jnp.argmax(mask, axis=1))


class LastPool(nnx.Module):
    """The set's last vector: what SigLIP's text tower reads off."""

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        return _member(features, _last(mask))


class Seq2SeqPool(nnx.Module):
    """The last state of a GRU that reads the set in its order."""

    def __init__(self, features: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.gru = GRU(features, embed_dim, rngs=rngs)

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b h"]:
        # Padding may hold anything, and NaN × 0 would reach the kernel's gradient.
        states = self.gru(jnp.where(mask[..., None], features, 0), mask)
        return _member(states, _last(mask))


class SelfAttentionPool(nnx.Module):
    """A mean weighted by softmax attention (Lin et al., ICLR 2017, with one hop).

    A vector's score is a perceptron's: linear to d / 2, tanh, linear to 1.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        hidden = max(features // 2, 1)
        float32 = jnp.dtype(jnp.float32)
        self.hidden = linear(features, hidden, dtype=float32, rngs=rngs)
        self.score = linear(hidden, 1, use_bias=False, dtype=float32, rngs=rngs)

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)
        scores = self.score(jnp.tanh(self.hidden(features)))
        weights = jax.nn.softmax(scores, axis=1, where=mask[..., None])
        return (weights * features).sum(axis=1)


class MAPPool(nnx.Module):
    """Multihead attention pooling (Zhai et al., CVPR 2022): the head of SigLIP's ViT.

    A learned probe attends to the set; a perceptron with norm before and residual after
    follows.
    """

    def __init__(self, features: int, heads: int, ffn: int, *, rngs: nnx.Rngs):
        float32 = jnp.dtype(jnp.float32)
        self.probe = nnx.Param(normal(0.02)(rngs.params(), (features,)))
        self.attention = Attention(features, heads, dtype=float32, rngs=rngs)
        self.norm = layer_norm(features, dtype=float32, rngs=rngs)
        self.mlp = Perceptron(features, ffn, dtype=float32, rngs=rngs)

    def __call__(
        self, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
    ) -> Float[Array, "b d"]:
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)
        probes = jnp.broadcast_to(
            self.probe[...], (features.shape[0], 1, features.shape[2])
        )
        x = self.attention(features, mask, probes=probes)[:, 0]
        return x + self.mlp(self.norm(x))


def _last(mask):
    """The place of each set's last member."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def _member(features, index):
    """features[i, index[i]] for each i, float32."""
    rows = jnp.take_along_axis(features, index[:, None, None], axis=1)
    return rows[:, 0].astype(jnp.float32)


# Each takes those of `make_pool`'s arguments that it needs.
POOLS: Registry[nnx.Module] = Registry(
    "pooling",
    {
        "gpo": GPO,
        "avg": AveragePool,
        "max": MaxPool,
        "kmax": KMaxPool,
        "gem": GeMPool,
        "fspool": FSPool,
        "cls": FirstPool,
        "last": LastPool,
        "seq2seq": Seq2SeqPool,
        "selfattn": SelfAttentionPool,
        "map": MAPPool,
    },
    nnx.Module,
    {"__call__": ("features", "mask")},
)
