import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.models.build import build_model
from vse_jax.models.vse import l2_normalize


def grid_batch(size=4):
    keys = jax.random.split(jax.random.key(0))
    return {
        "images": jax.random.normal(keys[0], (size, tiny.SIZE, tiny.SIZE, 3)),
        "token_ids": jax.random.randint(keys[1], (size, 16), 0, 32),
        "token_lengths": jnp.arange(size) % 16 + 1,
    }


def test_embeddings_have_unit_length_unless_told_otherwise():
    config = draft(tiny.get_config())
    for embedding in build_model(config, rngs=nnx.Rngs(0))(grid_batch()):
        assert embedding.shape == (4, config.embed_dim)
        np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    config.image.normalise = config.text.normalise = False
    for embedding in build_model(config, rngs=nnx.Rngs(0))(grid_batch()):
        assert abs(jnp.linalg.norm(embedding, axis=1) - 1).max() > 0.01


def test_a_zero_vector_has_a_finite_gradient():
    x = jnp.zeros((2, 3)).at[0, 0].set(2.0)
    gradient = jax.jacobian(l2_normalize)(x)
    assert np.isfinite(gradient).all()


def test_low_precision_towers_embed_in_float32():
    config = draft(tiny.get_config())
    full = build_model(config, rngs=nnx.Rngs(0))(grid_batch())
    config.compute_dtype = "bfloat16"
    model = build_model(config, rngs=nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.float32.dtype}
    for low, high in zip(model(grid_batch()), full, strict=True):
        assert low.dtype == jnp.float32
        np.testing.assert_allclose(low, high, atol=0.05)


def test_caption_features_may_replace_the_tokens():
    model = build_model(draft(tiny.get_config()), rngs=nnx.Rngs(0))
    batch = grid_batch()
    stored = {
        "token_features": model.caption_features(batch),
        "token_lengths": batch["token_lengths"],
    }
    np.testing.assert_array_equal(
        model.encode_captions(stored), model.encode_captions(batch)
    )


class OwnTower(nnx.Module):
    """All that a tower must be (docs/extending.md)."""

    def __call__(self, batch, *, train, rngs):
        return jnp.ones((len(batch["images"]), 32))


def test_a_tower_without_a_set_cannot_be_split():
    model = build_model(draft(tiny.get_config()), rngs=nnx.Rngs(0))
    model.image = OwnTower()
    assert model.encode_images(grid_batch()).shape == (4, 32)
    with pytest.raises(InputError, match="OwnTower is no SetEncoder"):
        model.image_attributions(grid_batch(), jnp.ones((4, 32)))


def test_the_model_holds_parameters_and_statistics_only():
    model = build_model(draft(tiny.get_config()), rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # all of it
    rebuilt = nnx.merge(graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats))
    for a, b in zip(rebuilt(grid_batch()), model(grid_batch()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_captions_beyond_the_position_table_are_refused():
    config = draft(tiny.get_config())
    config.text.max_positions = 8
    with pytest.raises(ValueError, match="16 tokens, but 8 positions"):
        build_model(config, rngs=nnx.Rngs(0))(grid_batch())
