"""What transformers are made of: attention, and layers that normalise before it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.initializers import constant, normal
from vse_jax.ops.packing import pack, unpack

_NORM_EPSILON = 1e-6  # SigLIP's; BERT's is its own
_INIT = normal(0.02)


class Attention(nnx.Module):
    """Multi-head attention of a set to itself, or of probes to a set.

    Raises:
        ValueError: heads do not divide hidden.
    """

    def __init__(self, hidden, heads, dropout=0.0, *, dtype, rngs):
        if hidden % heads:
            raise ValueError(f"{heads} heads do not divide hidden {hidden}")
        self.query = dense(hidden, hidden, dtype=dtype, rngs=rngs)
        self.key = dense(hidden, hidden, dtype=dtype, rngs=rngs)
        self.value = dense(hidden, hidden, dtype=dtype, rngs=rngs)
        self.output = dense(hidden, hidden, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.heads = heads

    def __call__(
        self,
        x: Float[Array, "b t h"] | Float[Array, "n h"],
        mask: Bool[Array, "b t"] | None,
        places: Int[Array, " n"] | None = None,
        *,
        probes: Float[Array, "b p h"] | None = None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b q h"] | Float[Array, "n h"]:
        """Returns a vector for each member of the set, or for each probe.

        Args:
            x: the set, with `places` packed (see `packing`).
            mask: the real members; others are never attended to. None: all are real.
            places: of the real members, where they are packed.
            probes: what attends; None: the set's members.
            train: apply dropout to the weights, with the stream `dropout` of `rngs`.
        """

        def heads(x):
            return x.reshape(*x.shape[:2], self.heads, -1)

        def members(project):
            y = project(x)
            return heads(y if mask is None else unpack(y, mask, places))

        query = members(self.query) if probes is None else heads(self.query(probes))
        key, value = members(self.key), members(self.value)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = self.dropout(weights, deterministic=not train, rngs=rngs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        if probes is None and mask is not None:
            mixed = pack(mixed, mask, places)
        return self.output(mixed)


class Perceptron(nnx.Module):
    """Linear → GELU (by its tanh formula) → linear."""

    def __init__(self, hidden, ffn, *, dtype, rngs):
        self.intermediate = dense(hidden, ffn, dtype=dtype, rngs=rngs)
        self.output = dense(ffn, hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... h"]) -> Float[Array, "... h"]:
        return self.output(jax.nn.gelu(self.intermediate(x), approximate=True))


class Layer(nnx.Module):
    """Self-attention and a perceptron, each with norm before and residual after."""

    def __init__(self, hidden, heads, ffn, *, dtype, rngs):
        self.attention_norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.attention = Attention(hidden, heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.mlp = Perceptron(hidden, ffn, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, train):
        del train  # there is no dropout
        x = x + self.attention(self.attention_norm(x), None)
        return x + self.mlp(self.mlp_norm(x))


def dense(
    in_features: int, out_features: int, *, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer that starts from N(0, 0.02²), its bias from 0."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=_INIT,
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )


def embedding(
    count: int, features: int, *, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Embed:
    """Vectors that start from N(0, 0.02²)."""
    return nnx.Embed(count, features, embedding_init=_INIT, dtype=dtype, rngs=rngs)


def layer_norm(
    features: int,
    epsilon: float = _NORM_EPSILON,
    *,
    dtype: np.dtype,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """Layer normalisation whose statistics are float32."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )
