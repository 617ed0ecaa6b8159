import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights, tiny
from tests.helpers.drafts import draft
from vse_jax.checkpoints.torch import keys
from vse_jax.models.build import build_image_encoder
from vse_jax.models.vse import l2_normalize

pytestmark = pytest.mark.golden


def region_encoder():
    config = draft(tiny.get_config())
    config.embed_dim = 32
    config.image.kind = "region"
    config.image.feature_dim = 48
    return golden_weights.golden_module(
        lambda: build_image_encoder(config, rngs=nnx.Rngs(0)),
        keys.REGION_ENCODER,
        "img_enc.",
    )


def region_batch():
    golden = golden_weights.load("image_region")
    return {
        "regions": jnp.asarray(golden["regions"]),
        "region_lengths": jnp.asarray(golden["lengths"]),
    }


def test_region_embeddings_equal_the_official_ones():
    tower, batch = region_encoder(), region_batch()
    golden = golden_weights.load("image_region")
    embedding = l2_normalize(tower(batch))
    np.testing.assert_allclose(embedding, golden["eval.embedding"], atol=1e-5)
    embedding = l2_normalize(tower(batch, train=True))
    np.testing.assert_allclose(embedding, golden["train.embedding"], atol=1e-5)
    for name, ours in (("mean", tower.mlp.bn.mean), ("var", tower.mlp.bn.var)):
        after = golden[f"train.after.mlp.bns.0.running_{name}"]
        np.testing.assert_allclose(ours[...], after, atol=1e-6)


def test_region_gradients_equal_the_official_ones():
    golden = golden_weights.load("image_region", "train.")
    batch = region_batch()

    def objective(tower):
        embedding = l2_normalize(tower(batch, train=True))
        return (embedding * golden["cotangent"]).sum()

    gradients = golden_weights.parameter_gradients(region_encoder(), objective)
    gradients = keys.to_torch(gradients, keys.REGION_ENCODER)
    assert len(gradients) == sum(name.startswith("grad.") for name in golden)
    for name, gradient in gradients.items():
        expected = golden[f"grad.{name}"]
        if (
            name == "mlp.layers.0.bias"
        ):  # before batch statistics: zero but for rounding
            assert max(np.abs(gradient).max(), np.abs(expected).max()) < 1e-5
        else:
            assert golden_weights.relative_error(gradient, expected) < 1e-4, name


@pytest.mark.parametrize("train", [False, True])
def test_region_padding_content_does_not_matter(train):
    batch = region_batch()
    position = jnp.arange(batch["regions"].shape[1])
    valid = (position < batch["region_lengths"][:, None])[..., None]
    spoilt = batch | {"regions": jnp.where(valid, batch["regions"], jnp.nan)}
    np.testing.assert_array_equal(
        region_encoder()(batch, train=train), region_encoder()(spoilt, train=train)
    )


@pytest.mark.parametrize("train", [False, True])
def test_region_padding_amount_does_not_matter(train):
    batch = region_batch()
    wider = batch | {"regions": jnp.pad(batch["regions"], ((0, 0), (0, 4), (0, 0)))}
    np.testing.assert_allclose(
        region_encoder()(wider, train=train),
        region_encoder()(batch, train=train),
        atol=1e-6,
    )


class Recorder(nnx.Module):
    """Stands in for the pooling and returns how much of each set it was given."""

    def __call__(self, features, mask):
        return mask.mean(axis=1, keepdims=True)


def kept_shares(drop, train, size=32, batch=512):
    """The share of each image's grid cells that reach the pooling."""
    config = draft(tiny.get_config())
    config.image.drop = drop
    tower = build_image_encoder(config, rngs=nnx.Rngs(0))
    tower.gpool = Recorder()
    images = jnp.zeros((batch, size, size, 3))
    return np.asarray(tower({"images": images}, train=train, rngs=nnx.Rngs(size=1)))


def test_training_thins_the_grid_as_the_paper_says():
    shares = kept_shares(0.2, train=True)  # of 4 × 4 cells
    # u in (0.2, 1): a cell goes with probability 0.2 u, 0.12 on average; else it stays.
    assert abs((1 - shares.mean()) - 0.8 * 0.12) < 0.01
    assert (shares < 1).any()


def test_evaluation_and_a_zero_drop_keep_every_cell():
    assert (kept_shares(0.2, train=False) == 1).all()
    assert (kept_shares(0.0, train=True) == 1).all()


def test_at_least_one_cell_stays():
    assert kept_shares(1.0, train=True, size=8).min() == 1  # one cell only
    shares = kept_shares(1.0, train=True, size=16)  # 2 × 2 cells
    assert shares.min() == 0.25


def test_thinning_depends_on_the_random_stream_only():
    config = draft(tiny.get_config())
    tower = build_image_encoder(config, rngs=nnx.Rngs(0))
    batch = {"images": jax.random.normal(jax.random.key(0), (4, 32, 32, 3))}

    def pooled(seed):
        fresh = nnx.merge(*nnx.split(tower))  # statistics change when training
        return np.asarray(fresh(batch, train=True, rngs=nnx.Rngs(size=seed)))

    np.testing.assert_array_equal(pooled(1), pooled(1))
    assert not np.array_equal(pooled(1), pooled(2))
