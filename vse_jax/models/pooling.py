"""The aggregators by their config name: a set of vectors becomes one vector.

All take sets padded to k vectors, `features` [b, k, d], and `mask` [b, k], the elements
of each set in any places (at least one); what padding holds has no effect. All compute
in float32. Most are those that the paper compares with its GPO (VSE∞, section 5).
"""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.base.registry import Registry
from vse_jax.config import POOL_CLASSES, Config, encoder_config
from vse_jax.models.gru import GRU
from vse_jax.models.layers import layer_norm, linear, normal
from vse_jax.models.transformer import MLP, Attention
from vse_jax.ops import sorted_pool

Sets = Float[Array, "b k d"]
Mask = Bool[Array, "b k"]
Pooled = Float[Array, "b p"]


@runtime_checkable
class Pool(Protocol):
    """What a pooling does. It is an `nnx.Module`; padding must have no effect.

    It may say `is_sum = True`: scaling all elements of a set scales its result alike.
    Similarities are then split exactly (`models.vse.attributions`).
    """

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        """The pooled vectors, float32, of sets whose elements `mask` tells."""
        ...


def build_pool(
    config: Config,
    side: str,
    features: int,
    *,
    heads: int | None = None,
    ffn: int | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The pooling of config.image or config.text, by its `side`.

    Args:
        config: embed_dim is the size of seq2seq's result.
        side: 'image' or 'text'.
        features: size of the vectors and, except for seq2seq, of the result.
        heads, ffn: sizes of map; None: 64 features each, and 4 · features.
        rngs: stream `params` initializes it.
    """
    part = encoder_config(config, side)
    return POOLS.make(
        f"config.{side}.pool",
        part.pool,
        features=features,
        embed_dim=config.embed_dim,
        k=part.pool_k,
        heads=heads or (features // 64 if features % 64 == 0 else 1),
        ffn=ffn or 4 * features,
        rngs=rngs,
    )


class AveragePool(nnx.Module):
    """The mean of the set."""

    is_sum = True

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        return jnp.mean(features.astype(jnp.float32), axis=1, where=mask[..., None])


class MaxPool(nnx.Module):
    """The largest value of each dimension; equal ones share its gradient."""

    is_sum = True

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        features = features.astype(jnp.float32)
        return jnp.where(mask[..., None], features, -jnp.inf).max(axis=1)


class KMaxPool(nnx.Module):
    """The mean of the k largest values of each dimension.

    A set of n < k vectors is averaged as a whole. (So it is in the original, whose loop
    then keeps that smaller k for the later sets of the batch; here sets are independent
    of each other.)
    """

    is_sum = True

    def __init__(self, k: int):
        self.k = k

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        used = jnp.minimum(self.k, mask.sum(axis=1, keepdims=True))
        weights = jnp.where(jnp.arange(mask.shape[1]) < used, 1 / used, 0)
        return sorted_pool(features.astype(jnp.float32), weights, mask)


class GeMPool(nnx.Module):
    """Generalised mean, (mean of x^p)^(1/p), p learned (Radenović et al., 2019).

    p starts at 3; 1 is the mean, ∞ the maximum. Values below 1e-6 count as 1e-6.
    """

    is_sum = True

    def __init__(self):
        # Its logarithm is what is learned: p stays above 0, where the root exists.
        self.log_p = nnx.Param(np.log(np.float32(3)))

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
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

    is_sum = True

    def __init__(self, features: int, pieces: int = 20, *, rngs: nnx.Rngs):
        shape = (pieces + 1, features)
        self.knots = nnx.Param(normal(1.0)(rngs.params(), shape))

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        knots = jnp.asarray(self.knots[...])  # NumPy's until training places them
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
    """The set's first vector: BERT's [CLS]."""

    is_sum = True

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        return _element(features, jnp.argmax(mask, axis=1))


class LastPool(nnx.Module):
    """The set's last vector: what SigLIP's text encoder takes."""

    is_sum = True

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        return _element(features, _last(mask))


class Seq2SeqPool(nnx.Module):
    """The last state of a GRU that reads the set in its order."""

    def __init__(self, features: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.gru = GRU(features, embed_dim, rngs=rngs)

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        # Padding may hold anything, and NaN × 0 would reach the kernel's gradient.
        states = self.gru(jnp.where(mask[..., None], features, 0), mask)
        return _element(states, _last(mask))


class SelfAttentionPool(nnx.Module):
    """A mean weighted by softmax attention (Lin et al., ICLR 2017, with one hop).

    A vector's score is an MLP's: linear to d / 2, tanh, linear to 1.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        hidden = max(features // 2, 1)
        float32 = jnp.dtype(jnp.float32)
        self.hidden = linear(features, hidden, dtype=float32, rngs=rngs)
        self.score = linear(hidden, 1, use_bias=False, dtype=float32, rngs=rngs)

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)
        scores = self.score(jnp.tanh(self.hidden(features)))
        weights = jax.nn.softmax(scores, axis=1, where=mask[..., None])
        return (weights * features).sum(axis=1)


class MAPPool(nnx.Module):
    """Multihead attention pooling (Zhai et al., CVPR 2022): the head of SigLIP's ViT.

    A learned query attends to the set; an MLP with norm before and residual after
    follows.
    """

    def __init__(self, features: int, heads: int, ffn: int, *, rngs: nnx.Rngs):
        float32 = jnp.dtype(jnp.float32)
        self.probe = nnx.Param(normal(0.02)(rngs.params(), (features,)))
        self.attention = Attention(features, heads, dtype=float32, rngs=rngs)
        self.norm = layer_norm(features, dtype=float32, rngs=rngs)
        self.mlp = MLP(features, ffn, dtype=float32, rngs=rngs)

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)
        queries = jnp.broadcast_to(
            self.probe[...], (features.shape[0], 1, features.shape[2])
        )
        x = self.attention(features, mask[:, None], queries=queries)[:, 0]
        return x + self.mlp(self.norm(x))


class EfficientProbingPool(nnx.Module):
    """Efficient probing (Psomas et al., ICLR 2026): a learned query for each subspace.

    The values V = X W are cut into M subspaces. Query m gives its own subspace's part
    of the result, softmax(q_m Xᵀ / √d) V_m: neither keys nor queries are projected. M
    is the paper's 32, or the largest divisor of it that divides the features, too.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        queries = math.gcd(features, 32)
        float32 = np.dtype(np.float32)
        self.queries = nnx.Param(normal(0.02)(rngs.params(), (queries, features)))
        self.value = linear(
            features, features, use_bias=False, dtype=float32, rngs=rngs
        )

    def __call__(self, features: Sets, mask: Mask) -> Pooled:
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)
        sets, size, width = features.shape
        queries = jnp.asarray(self.queries[...])
        scores = jnp.einsum("md,bkd->bmk", queries, features) * width**-0.5
        weights = jax.nn.softmax(scores, axis=-1, where=mask[:, None])
        values = self.value(features).reshape(sets, size, len(queries), -1)
        return jnp.einsum("bmk,bkmv->bmv", weights, values).reshape(sets, width)


def _last(mask):
    """The place of each set's last element."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def _element(features, index):
    """features[i, index[i]] for each i, float32."""
    rows = jnp.take_along_axis(features, index[:, None, None], axis=1)
    return rows[:, 0].astype(jnp.float32)


# Each takes those of `build_pool`'s arguments that it needs.
POOLS = Registry(
    "pooling", POOL_CLASSES, nnx.Module, {"__call__": ("features", "mask")}
)
