import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights, tiny
from tests.helpers.drafts import draft
from vse_jax.checkpoints.torch import keys
from vse_jax.data.collate import packed_indices
from vse_jax.models.build import build_text_encoder
from vse_jax.models.vse import l2_normalize

pytestmark = pytest.mark.golden

HEAD = 64  # leading gradient elements that the golden file holds


@pytest.fixture(scope="module")
def golden():
    return golden_weights.load("text_bert")


@pytest.fixture(scope="module")
def tower():
    config = draft(tiny.get_config())
    config.embed_dim = 32
    config.text.vocab_size = 200
    config.text.hidden = 768
    config.text.layers = 2
    config.text.heads = 12
    config.text.ffn = 3072
    config.text.max_positions = 512
    return golden_weights.golden_module(
        lambda: build_text_encoder(config, rngs=nnx.Rngs(0)),
        keys.BERT_ENCODER,
        "txt_enc.",
    )


@pytest.fixture(scope="module")
def embed(tower):
    return jax.jit(lambda batch: l2_normalize(tower(batch)))


@pytest.fixture(scope="module")
def batch(golden):
    return {
        "token_ids": jnp.asarray(golden["token_ids"]),
        "token_lengths": jnp.asarray(golden["lengths"]),
    }


@pytest.fixture(params=["padded", "packed", "attends_in_rows"])
def any_batch(request, batch, monkeypatch):
    if request.param == "padded":
        return batch
    rows = request.param == "attends_in_rows"  # as on accelerators
    monkeypatch.setattr("vse_jax.models.bert.attends_in_rows", lambda mesh: rows)
    count, length = batch["token_ids"].shape
    lengths = np.asarray(batch["token_lengths"])
    # A row would do for a few; another number of them, and `embed` is traced again.
    places = packed_indices(lengths, length, 1, count + rows)
    return batch | {"packed_indices": jnp.asarray(places)}


def test_embeddings_equal_the_official_ones(embed, any_batch, golden):
    batch = any_batch
    np.testing.assert_allclose(embed(batch), golden["embedding"], atol=1e-5)


def test_gradients_equal_the_official_ones(tower, any_batch, golden):
    batch = any_batch
    gradients = golden_weights.parameter_gradients(
        tower, lambda m: (l2_normalize(m(batch)) * golden["cotangent"]).sum()
    )
    gradients = keys.to_torch(gradients, keys.BERT_ENCODER)
    names = [n.removeprefix("grad_norm.") for n in golden if n.startswith("grad_norm.")]
    assert len(names) == 4
    for name in names:
        gradient = np.asarray(gradients[name])
        norm = np.linalg.norm(gradient)
        np.testing.assert_allclose(norm, golden[f"grad_norm.{name}"], rtol=1e-4)
        head = golden[f"grad_head.{name}"]
        np.testing.assert_allclose(
            gradient.ravel()[:HEAD], head, atol=1e-4 * np.abs(head).max(), rtol=1e-4
        )


def test_padding_content_and_amount_do_not_matter(embed, batch):
    embedding = embed(batch)
    valid = jnp.arange(12) < batch["token_lengths"][:, None]
    spoilt = batch | {"token_ids": jnp.where(valid, batch["token_ids"], 7)}
    np.testing.assert_allclose(embed(spoilt), embedding, atol=1e-5)
    wider = batch | {"token_ids": jnp.pad(batch["token_ids"], ((0, 0), (0, 4)))}
    np.testing.assert_allclose(embed(wider), embedding, atol=1e-5)


def test_stored_features_give_the_same_embedding(tower, embed, batch):
    features = jax.jit(lambda batch: tower.features(batch))(batch)
    stored = {"token_features": features, "token_lengths": batch["token_lengths"]}
    np.testing.assert_allclose(embed(stored), embed(batch), atol=1e-6)


def test_dropout_acts_in_training_only():
    tower = build_text_encoder(draft(tiny.get_config()), rngs=nnx.Rngs(0))
    batch = {"token_ids": jnp.full((2, 16), 5), "token_lengths": jnp.array([16, 3])}
    trained = [tower(batch, train=True, rngs=nnx.Rngs(dropout=s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert not np.array_equal(trained[0], trained[2])
    np.testing.assert_array_equal(tower(batch), tower(batch))
