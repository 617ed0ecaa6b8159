"""The BiGRU text encoder against the official one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights, tiny
from tests.helpers.drafts import draft
from vse_jax.checkpoints.torch import keys
from vse_jax.models.build import build_text_encoder
from vse_jax.models.vse import l2_normalize

pytestmark = pytest.mark.golden


def tiny_config(layers=1):
    config = draft(tiny.get_config())
    config.text.update(kind="bigru", layers=layers, vocab_size=60, word_dim=24)
    return config


@pytest.fixture(scope="module", params=["one_layer.", "two_layers."])
def case(request):
    """(golden arrays, tower with their weights, batch)"""
    golden = golden_weights.load("text_bigru", request.param)
    config = tiny_config(layers=1 if request.param == "one_layer." else 2)
    tower = golden_weights.golden_module(
        lambda: build_text_encoder(config, rngs=nnx.Rngs(0)),
        keys.BIGRU_ENCODER,
        "txt_enc.",
    )
    batch = {
        "token_ids": jnp.asarray(golden["token_ids"], jnp.int32),
        "token_lengths": jnp.asarray(golden["lengths"], jnp.int32),
    }
    return golden, tower, batch


def embed(tower, batch):
    return jax.jit(lambda batch: l2_normalize(tower(batch)))(batch)


def test_embeddings_equal_the_official_ones(case):
    golden, tower, batch = case
    np.testing.assert_allclose(embed(tower, batch), golden["embedding"], atol=1e-5)


def test_gradients_equal_the_official_ones(case):
    golden, tower, batch = case
    gradients = golden_weights.parameter_gradients(
        tower, lambda m: (l2_normalize(m(batch)) * golden["cotangent"]).sum()
    )
    gradients = keys.to_torch(gradients, keys.BIGRU_ENCODER)
    expected = {
        n.removeprefix("grad."): golden[n] for n in golden if n.startswith("grad.")
    }
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = golden_weights.relative_error(gradient, expected[name])
        assert error <= 1e-4, name


def test_padding_content_and_amount_do_not_matter(case):
    _, tower, batch = case
    embedding = embed(tower, batch)
    ids, lengths = batch["token_ids"], batch["token_lengths"]
    valid = jnp.arange(ids.shape[1]) < lengths[:, None]
    spoilt = batch | {"token_ids": jnp.where(valid, ids, 7)}
    np.testing.assert_allclose(embed(tower, spoilt), embedding, atol=1e-6)
    wider = batch | {"token_ids": jnp.pad(ids, ((0, 0), (0, 4)), constant_values=9)}
    np.testing.assert_allclose(embed(tower, wider), embedding, atol=1e-6)


def test_the_order_of_the_captions_does_not_matter(case):
    _, tower, batch = case
    order = jnp.array([3, 0, 5, 1, 4, 2])
    shuffled = {name: values[order] for name, values in batch.items()}
    expected = embed(tower, batch)[order]
    np.testing.assert_allclose(embed(tower, shuffled), expected, atol=1e-6)


def test_start_values():
    tower = build_text_encoder(tiny_config(), rngs=nnx.Rngs(0))
    table = np.asarray(tower.embed.embedding[...])
    assert 0.09 < np.abs(table).max() <= 0.1
    np.testing.assert_allclose(table.mean(), 0, atol=0.01)


def test_half_precision_stays_close(case):
    _, tower, batch = case
    config = tiny_config(layers=len(tower.rnn))
    config.compute_dtype = "bfloat16"
    half = build_text_encoder(config, rngs=nnx.Rngs(0))
    nnx.update(half, nnx.state(tower))
    embedding = embed(half, batch)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, embed(tower, batch), atol=0.02)
    assert not np.array_equal(embedding, embed(tower, batch))


def test_without_layers_a_caption_is_the_last_state_of_one_gru(case):
    """The text encoder of VSE++: word vectors → GRU → its state at <end>."""
    _, _, batch = case
    config = tiny_config(layers=0)
    config.text.pool = "seq2seq"
    tower = build_text_encoder(config, rngs=nnx.Rngs(0))
    assert len(tower.rnn) == 0
    pooled = tower(batch)
    for ids, length, row in zip(
        batch["token_ids"], batch["token_lengths"], pooled, strict=True
    ):
        words = tower.embed(ids[None, : int(length)])
        states = tower.gpool.gru(words, jnp.ones(words.shape[:2], bool))
        np.testing.assert_allclose(row, states[0, -1], atol=1e-6)
