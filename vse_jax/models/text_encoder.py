"""Text towers: token ids → BERT or a bidirectional GRU → pooling over the tokens."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
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
            remat=config.remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.linear = linear(text.hidden, config.embed_dim, dtype=dtype, rngs=rngs)
        self.gpool = make_pool(config, "text", config.embed_dim, rngs=rngs)

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
    like any other. Without layers the word vectors themselves are pooled: with
    pool = 'seq2seq' that is the GRU of VSE++, whose last state is the caption.

    Raises:
      InputError: the config wants token features stored, which only frozen ones can be,
        or no layers and a pooling that does not change the vectors' size.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        text = config.text
        if text.cache_features:
            raise InputError("config.text.cache_features: a BiGRU has none to store")
        if not text.layers and text.pool != "seq2seq":
            raise InputError("config.text.layers: 0 needs config.text.pool = 'seq2seq'")
        dtype = np.dtype(config.compute_dtype)
        self.embed = nnx.Embed(
            text.vocab_size,
            text.word_dim,
            embedding_init=symmetric_uniform(0.1),
            rngs=rngs,
        )
        inputs = [text.word_dim] + [2 * config.embed_dim] * text.layers
        self.rnn = nnx.List(
            BiGRU(size, config.embed_dim, dtype=dtype, rngs=rngs)
            for size in inputs[: text.layers]
        )
        size = config.embed_dim if text.layers else text.word_dim
        self.gpool = make_pool(config, "text", size, rngs=rngs)

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
        x = states = self.embed(ids)
        for layer in self.rnn:
            forward, backward = layer(x, mask)
            x = jnp.concatenate([forward, backward], axis=-1)
            states = (forward + backward) / 2
        return self.gpool(states, mask)


def _mask(batch, size):
    return jnp.arange(size) < batch["token_lengths"][:, None]
