"""Text towers: token ids → BERT or a bidirectional GRU → pooling over all tokens."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vse_jax.errors import InputError
from vse_jax.models.bert import Bert
from vse_jax.models.gru import BiGRU
from vse_jax.models.layers import linear, symmetric_uniform
from vse_jax.models.pooling import make_pool


class BertEncoder(nnx.Module):
    """Pools the linearly mapped BERT vectors of a caption, [CLS] and [SEP] included."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        dtype = np.dtype(config.compute_dtype)
        text = config.text
        self.bert = Bert(
            vocab_size=text.vocab_size,
            hidden=text.hidden,
            layers=text.layers,
            heads=text.heads,
            ffn=text.ffn,
            max_positions=text.max_positions,
            dropout=text.dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.linear = linear(text.hidden, config.embed_dim, dtype=dtype, rngs=rngs)
        self.gpool = make_pool(text.pool, rngs=rngs)

    def __call__(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Returns the pooled vectors of a batch of captions, float32.

        Args:
          batch: 'token_lengths' [b] and either 'token_ids' [b, t] or what `features`
            gave for them earlier, 'token_features' [b, t, h].
          train: apply dropout, with the stream `dropout` of `rngs`.
        """
        features = batch.get("token_features")
        if features is None:
            features = self.features(batch, train=train, rngs=rngs)
        return self.gpool(self.linear(features), _mask(batch, features.shape[1]))

    def features(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t h"]:
        """Returns BERT's last hidden state for batch['token_ids']."""
        ids = batch["token_ids"]
        return self.bert(ids, _mask(batch, ids.shape[1]), train=train, rngs=rngs)


class BiGRUEncoder(nnx.Module):
    """Pools the states of a bidirectional GRU over word vectors, both trained here.

    The state of a word is the mean of the two directions; <start> and <end> are words
    like any other.

    Raises:
      InputError: the config wants token features stored, which only frozen ones can be.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        text = config.text
        if text.cache_features:
            raise InputError("config.text.cache_features: a BiGRU has none to store")
        dtype = np.dtype(config.compute_dtype)
        self.embed = nnx.Embed(
            text.vocab_size,
            text.word_dim,
            embedding_init=symmetric_uniform(0.1),
            rngs=rngs,
        )
        inputs = [text.word_dim] + [2 * config.embed_dim] * (text.layers - 1)
        self.rnn = nnx.List(
            BiGRU(size, config.embed_dim, dtype=dtype, rngs=rngs) for size in inputs
        )
        self.gpool = make_pool(text.pool, rngs=rngs)

    def __call__(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Returns the pooled vectors of batch['token_ids'] [b, t], float32.

        Training and evaluation are the same here: there is no dropout.
        """
        ids = batch["token_ids"]
        mask = _mask(batch, ids.shape[1])
        x = self.embed(ids)
        for layer in self.rnn:
            forward, backward = layer(x, mask)
            x = jnp.concatenate([forward, backward], axis=-1)
        return self.gpool((forward + backward) / 2, mask)


def _mask(batch, size):
    return jnp.arange(size) < batch["token_lengths"][:, None]
