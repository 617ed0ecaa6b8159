"""Text tower: BERT → linear → pooling over all tokens."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vse_jax.models.bert import Bert
from vse_jax.models.layers import linear
from vse_jax.models.pooling import make_pool


class TextEncoder(nnx.Module):
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


def _mask(batch, size):
    return jnp.arange(size) < batch["token_lengths"][:, None]
