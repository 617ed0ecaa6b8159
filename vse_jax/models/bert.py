"""BERT encoder (Devlin et al. 2019): token ids to contextual token vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.blocks import run_block
from vse_jax.models.initializers import constant, normal
from vse_jax.models.packing import pack, unpack

_NORM_EPSILON = 1e-12
_TOKEN_TYPES = 2  # BERT's checkpoints hold two; single sentences use the first
_INIT = normal(0.02)


class Bert(nnx.Module):
    """Embeddings and a stack of post-norm transformer layers, without the pooler.

    The tree mirrors PyTorch's names, so that conversion is a table (weights/keys.py).

    Args:
        vocab_size, hidden, layers, heads, ffn, max_positions: sizes.
        dropout: on embeddings, attention weights and both residual branches.
        remat: keep only each layer's input for the backward pass, and compute the layer
            again there.
        dtype: of the matrix products; normalisation statistics and softmax are float32.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) more tokens than
            max_positions.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden: int,
        layers: int,
        heads: int,
        ffn: int,
        max_positions: int,
        dropout: float,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        if hidden % heads:
            raise ValueError(f"{heads} heads do not divide hidden {hidden}")
        self.embeddings = Embeddings(
            vocab_size, hidden, max_positions, dropout, dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List(
            Layer(hidden, heads, ffn, dropout, dtype=dtype, rngs=rngs)
            for _ in range(layers)
        )
        self.remat = remat

    def __call__(
        self,
        token_ids: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        places: Int[Array, " n"] | None = None,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t h"]:
        """Returns the last layer's vectors.

        Args:
            token_ids: WordPiece ids, padded on the right.
            mask: the real tokens; others are never attended to.
            places: of the real tokens (see `packing`): all but attention then skips
                the others, whose vectors are 0.
            train: apply dropout, with the stream `dropout` of `rngs`.
        """
        tokens, most = token_ids.shape[1], self.embeddings.position.num_embeddings
        if tokens > most:
            raise ValueError(f"{tokens} tokens, but {most} positions")
        ids, positions = token_ids, jnp.arange(tokens)
        if places is not None:
            ids = token_ids.reshape(-1).at[places].get(mode="fill", fill_value=0)
            positions = places % tokens
        x = self.embeddings(ids, positions, train=train, rngs=rngs)
        for layer in self.layers:
            inputs = (x, mask, places)
            x = run_block(layer, *inputs, train=train, rngs=rngs, remat=self.remat)
        return unpack(x, mask, places)


class Embeddings(nnx.Module):
    """Word + position + token-type embedding, normalised."""

    def __init__(self, vocab_size, hidden, max_positions, dropout, *, dtype, rngs):
        self.word = _embed(vocab_size, hidden, dtype, rngs)
        self.position = _embed(max_positions, hidden, dtype, rngs)
        self.token_type = _embed(_TOKEN_TYPES, hidden, dtype, rngs)
        self.norm = _layer_norm(hidden, dtype, rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, token_ids, positions, *, train, rngs):
        x = self.word(token_ids)
        x += self.position(positions)
        x += self.token_type(jnp.zeros(1, jnp.int32))
        return self.dropout(self.norm(x), deterministic=not train, rngs=rngs)


class Layer(nnx.Module):
    """Self-attention and a two-layer perceptron, each with residual and norm after."""

    def __init__(self, hidden, heads, ffn, dropout, *, dtype, rngs):
        self.attention = Attention(hidden, heads, dropout, dtype=dtype, rngs=rngs)
        self.attention_norm = _layer_norm(hidden, dtype, rngs)
        self.intermediate = _linear(hidden, ffn, dtype, rngs)
        self.output = _linear(ffn, hidden, dtype, rngs)
        self.output_norm = _layer_norm(hidden, dtype, rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x, mask, places, *, train, rngs=None):
        def dropout(y):
            return self.dropout(y, deterministic=not train, rngs=rngs)

        y = self.attention(x, mask, places, train=train, rngs=rngs)
        x = self.attention_norm(x + dropout(y))
        y = self.output(jax.nn.gelu(self.intermediate(x), approximate=False))
        return self.output_norm(x + dropout(y))


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, hidden, heads, dropout, *, dtype, rngs):
        self.query = _linear(hidden, hidden, dtype, rngs)
        self.key = _linear(hidden, hidden, dtype, rngs)
        self.value = _linear(hidden, hidden, dtype, rngs)
        self.output = _linear(hidden, hidden, dtype, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.heads = heads

    def __call__(self, x, mask, places, *, train, rngs):
        def heads(project):
            y = unpack(project(x), mask, places)
            return y.reshape(*y.shape[:2], self.heads, -1)

        query, key, value = heads(self.query), heads(self.key), heads(self.value)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        scores = jnp.where(mask[:, None, None], scores * query.shape[-1] ** -0.5, -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = self.dropout(weights, deterministic=not train, rngs=rngs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return self.output(pack(mixed, mask, places))


def _linear(in_features, out_features, dtype, rngs):
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=_INIT,
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )


def _embed(count, features, dtype, rngs):
    return nnx.Embed(count, features, embedding_init=_INIT, dtype=dtype, rngs=rngs)


def _layer_norm(features, dtype, rngs):
    return nnx.LayerNorm(
        features,
        epsilon=_NORM_EPSILON,
        use_fast_variance=False,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )
