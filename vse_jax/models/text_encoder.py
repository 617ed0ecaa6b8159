"""Text encoders: the tokens of a caption become a set, which is pooled.

All take batch['token_lengths'] [b] and batch['token_ids'] [b, t], padded on the right.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.config import Config
from vse_jax.models.bert import Bert
from vse_jax.models.gru import BiGRU
from vse_jax.models.layers import linear, uniform
from vse_jax.models.pooling import build_pool
from vse_jax.models.siglip import SiglipText
from vse_jax.models.vse import Batch, Elements, SetEncoder


class BertEncoder(SetEncoder):
    """BERT → linear → pooling over all tokens, [CLS] and [SEP] included."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        text, embed = config.text, config.embed_dim
        dtype = np.dtype(config.compute_dtype)
        self.bert = Bert(text, remat=config.remat, dtype=dtype, rngs=rngs)
        self.linear = linear(text.hidden, embed, dtype=dtype, rngs=rngs)
        self.gpool = build_pool(config, "text", embed, rngs=rngs)

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the tokens of a batch of captions; see `SetEncoder`.

        In place of 'token_ids' the batch may hold what `features` gave for them
        earlier, 'token_features' [b, t, h].
        """
        features = batch.get("token_features")
        if features is None:
            features = self.features(batch, train=train, rngs=rngs)
        return self.linear(features), _mask(batch, features.shape[1])

    def features(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t h"]:
        """Returns BERT's last hidden state (packed_indices: see ops/packing.py)."""
        ids, places = batch["token_ids"], batch.get("packed_indices")
        mask = _mask(batch, ids.shape[1])
        return self.bert(ids, mask, places, train=train, rngs=rngs)


class SiglipEncoder(SetEncoder):
    """SigLIP's text transformer → linear → pooling over the caption's tokens.

    SigLIP's own pooling, 'last', takes the last of all positions, padding included.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        text, embed = config.text, config.embed_dim
        dtype = np.dtype(config.compute_dtype)
        self.siglip = SiglipText(text, remat=config.remat, dtype=dtype, rngs=rngs)
        self.linear = linear(text.hidden, embed, dtype=dtype, rngs=rngs)
        self.gpool = build_pool(config, "text", embed, rngs=rngs)
        self.padded = text.pool == "last"

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the tokens, or all positions; arguments as for `BertEncoder`."""
        features = batch.get("token_features")
        if features is None:
            features = self._all_positions(batch, train)
            if not self.padded:
                features = features[:, : batch["token_ids"].shape[1]]
        mask = _mask(batch, features.shape[1]) | self.padded
        return self.linear(features), mask

    def features(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t h"]:
        """Returns the last hidden state of batch['token_ids']."""
        return self._all_positions(batch, train)[:, : batch["token_ids"].shape[1]]

    def _all_positions(self, batch, train):
        ids = batch["token_ids"]
        return self.siglip(ids, _mask(batch, ids.shape[1]), train=train)


class BiGRUEncoder(SetEncoder):
    """Word embeddings → bidirectional GRUs → pooling over the words' states.

    The state of a word is the mean of the two directions; <start> and <end> are words
    like any other. Without layers the word vectors themselves are pooled: with
    pool = 'seq2seq' that is the GRU of VSE++, whose last state is the caption.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        text, embed = config.text, config.embed_dim
        self.embed = nnx.Embed(
            text.vocab_size, text.word_dim, embedding_init=uniform(0.1), rngs=rngs
        )
        inputs = [text.word_dim] + [2 * embed] * text.layers
        dtype = np.dtype(config.compute_dtype)
        self.rnn = nnx.List(
            BiGRU(size, embed, dtype=dtype, rngs=rngs) for size in inputs[: text.layers]
        )
        size = embed if text.layers else text.word_dim
        self.gpool = build_pool(config, "text", size, rngs=rngs)

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the words of batch['token_ids'] [b, t]; there is no dropout."""
        ids = batch["token_ids"]
        mask = _mask(batch, ids.shape[1])
        x = states = self.embed(ids)
        for layer in self.rnn:
            forward, backward = layer(x, mask)
            x = jnp.concatenate([forward, backward], axis=-1)
            states = (forward + backward) / 2
        return states, mask


def _mask(batch, size):
    return jnp.arange(size) < batch["token_lengths"][:, None]
