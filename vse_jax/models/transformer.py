"""What transformers share: multi-head attention and the MLP."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.layers import linear
from vse_jax.ops import pack, unpack


class Attention(nnx.Module):
    """Multi-head attention of a set to itself, or of queries to a set.

    Raises:
        ValueError: heads do not divide hidden.
    """

    def __init__(self, hidden, heads, dropout=0.0, *, dtype, rngs):
        if hidden % heads:
            raise ValueError(f"{heads} heads do not divide hidden {hidden}")
        projection = functools.partial(
            linear, hidden, hidden, init="transformer", dtype=dtype, rngs=rngs
        )
        self.query = projection()
        self.key = projection()
        self.value = projection()
        self.output = projection()
        self.dropout = nnx.Dropout(dropout)
        self.heads = heads
        self.mesh: Mesh | None = None  # over whose devices sets are: see `place`

    def __call__(
        self,
        x: Float[Array, "b k h"] | Float[Array, "n h"],
        attends: Bool[Array, "_ _ _"] | None = None,
        padding: tuple[Bool[Array, "b t"], Int[Array, " n"]] | None = None,
        *,
        queries: Float[Array, "b q h"] | None = None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b q h"] | Float[Array, "n h"]:
        """Returns a vector for each element of the set, or for each query.

        Args:
            x: the set; with `padding` all sets' elements.
            attends: [b, 1 or q, k], the elements that each query attends to. None: all.
            padding: (mask, places): `x` is unpacked for attention (ops/packing.py).
            queries: what attends; None: the set's elements.
            train: apply dropout to the weights, with the stream `dropout` of `rngs`.
        """

        def heads(x):
            return x.reshape(*x.shape[:2], self.heads, -1)

        def of_set(project):
            y = project(x)
            return heads(y if padding is None else unpack(y, *padding, self.mesh))

        query = of_set(self.query) if queries is None else heads(self.query(queries))
        key, value = of_set(self.key), of_set(self.value)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if attends is not None:
            scores = jnp.where(attends[:, None], scores, -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = self.dropout(weights, deterministic=not train, rngs=rngs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        if padding is not None:
            mixed = pack(mixed, *padding, self.mesh)
        return self.output(mixed)


class MLP(nnx.Module):
    """Linear → GELU (by its tanh formula) → linear."""

    def __init__(self, hidden, ffn, *, dtype, rngs):
        init = "transformer"
        self.intermediate = linear(hidden, ffn, init=init, dtype=dtype, rngs=rngs)
        self.output = linear(ffn, hidden, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... h"]) -> Float[Array, "... h"]:
        return self.output(jax.nn.gelu(self.intermediate(x), approximate=True))
