"""SigLIP's text transformer (Zhai et al., 2023): token ids to token vectors."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.transformer import Layer, embedding, layer_norm
from vse_jax.ops.blocks import run_block


class SiglipText(nnx.Module):
    """Token and position embeddings, pre-norm layers, a last norm.

    It was trained on captions that are padded to `positions` tokens, and looks at the
    padding as at any other token: so does this.

    Args:
        vocab_size, hidden, layers, heads, ffn, positions: sizes.
        pad_id: the token that fills a caption up.
        remat: keep only each layer's input for the backward pass, and compute the layer
            again there.
        dtype: of the matrix products; normalisation statistics and softmax are float32.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) more tokens than
            positions.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden: int,
        layers: int,
        heads: int,
        ffn: int,
        positions: int,
        pad_id: int,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.word = embedding(vocab_size, hidden, dtype=dtype, rngs=rngs)
        self.position = embedding(positions, hidden, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            Layer(hidden, heads, ffn, dtype=dtype, rngs=rngs) for _ in range(layers)
        )
        self.norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.pad_id = pad_id
        self.remat = remat

    def __call__(
        self,
        token_ids: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        *,
        train: bool = False,
    ) -> Float[Array, "b positions h"]:
        """Returns the last layer's vectors, of the padding, too.

        Args:
            token_ids: padded on the right with anything.
            mask: the real tokens.
            train: has no effect, as there is no dropout.
        """
        places = self.position.num_embeddings
        missing = places - token_ids.shape[1]
        if missing < 0:
            raise ValueError(f"{token_ids.shape[1]} tokens, but {places} positions")
        ids = jnp.where(mask, token_ids, self.pad_id)
        ids = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=self.pad_id)
        x = self.word(ids) + self.position(jnp.arange(places))
        for layer in self.layers:
            x = run_block(layer, x, train=train, remat=self.remat)
        return self.norm(x)
