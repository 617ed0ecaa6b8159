"""BERT encoder (Devlin et al. 2019): token ids to contextual token vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vse_jax.config import TextConfig
from vse_jax.models.layers import embedding, layer_norm, linear
from vse_jax.models.transformer import Attention
from vse_jax.ops import Blocks, attends_in_rows, pack, unpack

_EPSILON = 1e-12  # of layer normalization
_TOKEN_TYPES = 2  # BERT's checkpoints hold two; single sentences use the first


class Bert(nnx.Module):
    """Embeddings and a stack of post-norm transformer layers, without the pooler.

    The tree mirrors PyTorch's names, so that conversion is a table
    (checkpoints/torch/keys.py).

    Args:
        text: the config's: sizes, and the dropout on embeddings, attention weights and
            both residual branches.
        remat: keep only each layer's input for the backward pass, and compute the layer
            again there.
        dtype: of the matrix products; normalization statistics and softmax are float32.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) more tokens than
            max_positions.
    """

    def __init__(
        self,
        text: TextConfig,
        *,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Embeddings(text, dtype=dtype, rngs=rngs)
        layers = (BertLayer(text, dtype=dtype, rngs=rngs) for _ in range(text.layers))
        self.layers = Blocks(layers, remat=remat)
        self.mesh: Mesh | None = None  # over whose devices captions are: see `place`

    def __call__(
        self,
        token_ids: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        places: Int[Array, "r w"] | None = None,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t h"]:
        """Returns the last layer's vectors.

        Args:
            token_ids: WordPiece ids, padded on the right.
            mask: the real tokens; others are never attended to.
            places: of the real tokens (see ops/packing.py): the others are skipped,
                and their vectors are 0.
            train: apply dropout, with the stream `dropout` of `rngs`.
        """
        tokens, most = token_ids.shape[1], self.embeddings.position.num_embeddings
        if tokens > most:
            raise ValueError(f"{tokens} tokens, but {most} positions")
        ids, positions, attends = token_ids, jnp.arange(tokens), mask[:, None]
        padding = None
        if places is not None:
            if attends_in_rows(self.mesh):
                captions = places // tokens
                attends = captions[:, :, None] == captions[:, None, :]
            else:
                places = places.reshape(-1)
                padding = mask, places
            ids = pack(token_ids[..., None], mask, places, self.mesh)[..., 0]
            positions = places % tokens
        x = self.embeddings(ids, positions, train=train, rngs=rngs)
        x = self.layers(x, attends, padding, train=train, rngs=rngs)
        return x if places is None else unpack(x, mask, places, self.mesh)


class Embeddings(nnx.Module):
    """Word + position + token-type embedding, normalized."""

    def __init__(self, text: TextConfig, *, dtype, rngs):
        hidden = text.hidden
        self.word = embedding(text.vocab_size, hidden, dtype=dtype, rngs=rngs)
        self.position = embedding(text.max_positions, hidden, dtype=dtype, rngs=rngs)
        self.token_type = embedding(_TOKEN_TYPES, hidden, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(hidden, _EPSILON, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(text.dropout)

    def __call__(self, token_ids, positions, *, train, rngs):
        x = self.word(token_ids)
        x += self.position(positions)
        x += self.token_type(jnp.zeros(1, jnp.int32))
        return self.dropout(self.norm(x), deterministic=not train, rngs=rngs)


class BertLayer(nnx.Module):
    """Self-attention and an MLP, each with residual and norm after."""

    def __init__(self, text: TextConfig, *, dtype, rngs):
        hidden, ffn = text.hidden, text.ffn
        self.attention = Attention(
            hidden, text.heads, text.dropout, dtype=dtype, rngs=rngs
        )
        self.attention_norm = layer_norm(hidden, _EPSILON, dtype=dtype, rngs=rngs)
        init = "transformer"
        self.intermediate = linear(hidden, ffn, init=init, dtype=dtype, rngs=rngs)
        self.output = linear(ffn, hidden, init=init, dtype=dtype, rngs=rngs)
        self.output_norm = layer_norm(hidden, _EPSILON, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(text.dropout)

    def __call__(self, x, attends, padding, *, train, rngs=None):
        def dropout(y):
            return self.dropout(y, deterministic=not train, rngs=rngs)

        y = self.attention(x, attends, padding, train=train, rngs=rngs)
        x = self.attention_norm(x + dropout(y))
        y = self.output(jax.nn.gelu(self.intermediate(x), approximate=False))
        return self.output_norm(x + dropout(y))
