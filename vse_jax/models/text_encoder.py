"""Text towers: token ids → BERT or a bidirectional GRU → pooling over the tokens."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.models.bert import Bert
from vse_jax.models.gru import BiGRU
from vse_jax.models.pooling import Members
from vse_jax.models.set_encoder import SetEncoder
from vse_jax.models.siglip import SiglipText


class BertEncoder(SetEncoder):
    """Pools the linearly mapped BERT vectors of a caption, [CLS] and [SEP] included."""

    def __init__(self, bert: Bert, linear: nnx.Linear, pool: nnx.Module):
        self.bert = bert
        self.linear = linear
        self.gpool = pool

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the tokens of a batch of captions.

        Args:
            batch: 'token_lengths' [b] and either 'token_ids' [b, t], with or without
                'packed_indices' [n] (see `packing`), or what `features` gave for them
                earlier, 'token_features' [b, t, h].
            train: apply dropout, with the stream `dropout` of `rngs`.
            rngs: see `train`.
        """
        features = batch.get("token_features")
        if features is None:
            features = self.features(batch, train=train, rngs=rngs)
        return self.linear(features), _mask(batch, features.shape[1])

    def features(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t h"]:
        """Returns BERT's last hidden state for batch['token_ids']."""
        ids, places = batch["token_ids"], batch.get("packed_indices")
        mask = _mask(batch, ids.shape[1])
        return self.bert(ids, mask, places, train=train, rngs=rngs)


class SiglipEncoder(SetEncoder):
    """Pools the linearly mapped vectors of SigLIP's text transformer.

    `padded`: the set is all positions, padding included, as SigLIP's own pooling (the
    last position) needs it; otherwise it is the caption's tokens.
    """

    def __init__(
        self, siglip: SiglipText, linear: nnx.Linear, pool: nnx.Module, *, padded: bool
    ):
        self.siglip = siglip
        self.linear = linear
        self.gpool = pool
        self.padded = padded

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the tokens of a batch of captions, or all positions.

        Args:
            batch: 'token_lengths' [b] and either 'token_ids' [b, t] or what `features`
                gave for them earlier, 'token_features' [b, t, h].
            train: has no effect, as there is no dropout.
            rngs: not used.
        """
        features = batch.get("token_features")
        if features is None:
            features = self._states(batch, train)
        if not self.padded:
            features = features[:, : _size(batch)]
        mask = _mask(batch, features.shape[1]) | self.padded
        return self.linear(features), mask

    def features(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t h"]:
        """Returns the last hidden state for batch['token_ids']."""
        return self._states(batch, train)[:, : _size(batch)]

    def _states(self, batch, train):
        ids = batch["token_ids"]
        return self.siglip(ids, _mask(batch, ids.shape[1]), train=train)


class BiGRUEncoder(SetEncoder):
    """Pools the states of a bidirectional GRU over word vectors, both trained here.

    The state of a word is the mean of the two directions; <start> and <end> are words
    like any other. Without layers the word vectors themselves are pooled: with
    pool = 'seq2seq' that is the GRU of VSE++, whose last state is the caption.
    """

    def __init__(self, embed: nnx.Embed, layers: Sequence[BiGRU], pool: nnx.Module):
        self.embed = embed
        self.rnn = nnx.List(layers)
        self.gpool = pool

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the words of batch['token_ids'] [b, t].

        Training and evaluation are the same here: there is no dropout.
        """
        ids = batch["token_ids"]
        mask = _mask(batch, ids.shape[1])
        x = states = self.embed(ids)
        for layer in self.rnn:
            forward, backward = layer(x, mask)
            x = jnp.concatenate([forward, backward], axis=-1)
            states = (forward + backward) / 2
        return states, mask


def _size(batch):
    """What the captions of a batch are padded to."""
    return batch["token_features" if "token_features" in batch else "token_ids"].shape[
        1
    ]


def _mask(batch, size):
    return jnp.arange(size) < batch["token_lengths"][:, None]
