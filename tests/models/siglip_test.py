"""Both towers of SigLIP give the embeddings and logits of transformers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from configs import coco_siglip2, siglip2_zero_shot
from tests.helpers import siglip
from tests.helpers.drafts import draft
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.siglip import is_zero_shot, load_siglip, siglip_sizes
from vse_jax.models.build import abstract_model, build_model, merge_model

LENGTHS = np.array([siglip.POSITIONS, 5, 1], np.int32)


@pytest.fixture(scope="module")
def peer():
    return siglip.peer()


@pytest.fixture(scope="module")
def model(peer, tmp_path_factory):
    folder = siglip.write_folder(tmp_path_factory.mktemp("siglip"), peer)
    return siglip.loaded(folder)


@pytest.fixture(scope="module")
def batch():
    return siglip.batch(LENGTHS)


def relative(actual, expected):
    expected = expected.detach().numpy()
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def test_embeddings_and_logits_equal_those_of_transformers(model, peer, batch):
    images, captions = jax.jit(lambda batch: model(batch))(batch)
    with torch.no_grad():
        expected = peer(**siglip.inputs(batch))
    assert relative(images, expected.image_embeds) <= 1e-5
    assert relative(captions, expected.text_embeds) <= 1e-5
    scale, bias = np.exp(model.loss.log_scale[...]), model.loss.bias[...]
    logits = scale * (images @ captions.T) + bias
    assert relative(logits, expected.logits_per_image) <= 1e-5
    assert np.abs(images - np.roll(images, 1, axis=0)).max() > 1e-3
    assert np.abs(captions - np.roll(captions, 1, axis=0)).max() > 1e-3


def test_padding_of_the_batch_does_not_matter(model, batch):
    """… but a caption's own padding to all positions is read, as SigLIP does."""
    captions = model.encode_captions(batch)
    shorter = {
        "token_ids": batch["token_ids"][1:, :5].at[1, 1:].set(7),
        "token_lengths": batch["token_lengths"][1:],
    }
    np.testing.assert_allclose(model.encode_captions(shorter), captions[1:], atol=1e-6)


@pytest.mark.parametrize("pool", ["gpo", "avg", "map"])
def test_any_other_pooling_sees_patches_and_tokens(pool, batch):
    config = draft()
    config.update_from_flattened_dict(
        {
            "embed_dim": 10,
            "image.kind": "vit",
            "image.size": siglip.SIZE,
            "image.pool": pool if pool != "map" else "max",
            "image.vit": {"patch": 8, "hidden": 8, "layers": 1, "heads": 2, "ffn": 12},
            "text.kind": "siglip",
            "text.pool": pool,
            "text.vocab_size": siglip.VOCAB,
            "text.hidden": 8,
            "text.layers": 1,
            "text.heads": 2,
            "text.ffn": 12,
            "text.max_positions": siglip.POSITIONS,
        }
    )
    model = build_model(config, rngs=nnx.Rngs(0))
    features, mask = model.image.elements(batch)
    assert features.shape == (len(LENGTHS), 16, 10)
    assert mask.all()
    features, mask = model.text.elements(batch)
    assert features.shape == (len(LENGTHS), siglip.POSITIONS, 10)
    np.testing.assert_array_equal(mask.sum(axis=1), LENGTHS)
    stored = {
        "token_features": model.caption_features(batch),
        "token_lengths": batch["token_lengths"],
    }
    captions = model.encode_captions(batch)
    np.testing.assert_allclose(model.encode_captions(stored), captions, atol=1e-6)
    spoilt = batch | {"token_ids": jnp.where(mask, batch["token_ids"], 7)}
    np.testing.assert_allclose(model.encode_captions(spoilt), captions, atol=1e-6)
    _, trained = model.image.elements(batch, train=True, rngs=nnx.Rngs(size=0))
    assert not trained.all()  # size augmentation


@pytest.mark.parametrize("recipe", ["gpo", "map", "avg", "finetune"])
def test_a_recipe_traces_at_full_size(recipe):
    config = draft(coco_siglip2.get_config(recipe))
    graphdef, model = abstract_model(config)
    sizes = {"images": (2, 256, 256, 3), "token_ids": (2, 64), "token_lengths": (2,)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, "f4" if name == "images" else "i4")
        for name, shape in sizes.items()
    }

    def encode(model, batch):
        return merge_model(graphdef, model)(batch)

    for vectors in jax.eval_shape(encode, model, batch):
        assert (vectors.shape, vectors.dtype) == ((2, 768), np.float32)
    patterns = [rule[0] for rule in config.optimizer.rules]
    for pattern in patterns:
        assert any(re.match(pattern, path) for path in flatten(model["params"]))


def test_the_zero_shot_recipe_is_the_published_model():
    config = draft(siglip2_zero_shot.get_config())
    assert is_zero_shot(config)
    assert is_zero_shot(draft(coco_siglip2.get_config("map")))
    assert not is_zero_shot(draft(coco_siglip2.get_config("gpo")))
    count = sum(x.size for x in jax.tree.leaves(abstract_model(config)[1]))
    assert count == 375_234_050  # transformers' SiglipModel has as many


def test_so400ms_sizes_come_from_its_config(tmp_path):
    """Patches of 14 px, which do not divide 384; 27 layers; a perceptron of 4304."""
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    published = transformers.SiglipConfig(
        vision_config=sizes | {"image_size": 384, "patch_size": 14},
        text_config=sizes | {"vocab_size": 256_000, "projection_size": 1152},
    )
    published.save_pretrained(tmp_path)
    with torch.device("meta"):
        peer = transformers.SiglipModel(published)
    config = draft(siglip2_zero_shot.get_config())
    config.update_from_flattened_dict(siglip_sizes(tmp_path))
    ours = jax.tree.leaves(abstract_model(config)[1])
    assert sum(x.size for x in ours) == sum(p.numel() for p in peer.parameters())


@pytest.mark.slow
def test_the_base_model_in_full_size_equals_transformers(tmp_path):
    vision = {"image_size": 256}
    text = {"vocab_size": 256_000, "bos_token_id": 2, "eos_token_id": 1}
    peer = siglip.peer(vision, text)
    assert sum(p.numel() for p in peer.parameters()) == 375_234_050
    peer.save_pretrained(tmp_path)
    config = draft(siglip2_zero_shot.get_config())
    graphdef, model = abstract_model(config)
    model = merge_model(
        graphdef,
        {"params": load_siglip(tmp_path, model["params"])} | {"batch_stats": {}},
    )
    batch = siglip.batch(np.array([64, 9, 3], np.int32), size=256, vocab=256_000)
    images, captions = jax.jit(lambda batch: model(batch))(batch)
    with torch.no_grad():
        expected = peer(**siglip.inputs(batch, positions=64))
    assert relative(images, expected.image_embeds) <= 1e-4
    assert relative(captions, expected.text_embeds) <= 1e-4
    assert np.abs(images - np.roll(images, 1, axis=0)).max() > 1e-3
    assert np.abs(captions - np.roll(captions, 1, axis=0)).max() > 1e-3
