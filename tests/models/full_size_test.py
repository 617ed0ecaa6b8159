"""The published networks in full size give PyTorch's embeddings."""

import importlib

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks import pytorch_peer
from tests.helpers.drafts import draft
from tests.helpers.golden_weights import golden_module
from vse_jax.checkpoints.torch import keys
from vse_jax.models.build import build_image_encoder, build_text_encoder
from vse_jax.models.vse import l2_normalize

pytestmark = [pytest.mark.slow, pytest.mark.golden]


@pytest.fixture(autouse=True)
def optimised():
    """Here it is the run time that counts, and not the compile time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def config_of(recipe):
    return draft(importlib.import_module(f"configs.{recipe}").get_config())


def embed(tower, batch):
    return np.asarray(jax.jit(lambda batch: l2_normalize(tower(batch)))(batch))


@torch.inference_mode()
def peer_embed(peer, tower, table, *inputs):
    """Embeddings [b, d] of the PyTorch module with the weights of `tower`."""
    tensors = {
        key: torch.from_numpy(np.array(tensor))
        for key, tensor in keys.to_torch(
            nnx.to_pure_dict(nnx.state(tower)), table
        ).items()
    }
    missing, unexpected = peer.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return peer.eval()(*map(torch.from_numpy, inputs)).numpy()


def check_equal(ours, theirs):
    print(
        np.abs(ours - theirs).max(),
        1
        - (
            (ours.astype(float) * theirs).sum(1)
            / np.linalg.norm(ours.astype(float), axis=1)
            / np.linalg.norm(theirs.astype(float), axis=1)
        ).min(),
        np.abs(ours - np.roll(ours, 1, axis=0)).max(),
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(axis=1) / norms).min() >= 0.999999
    # Different inputs have different embeddings, or the rest would show nothing.
    assert np.abs(ours - np.roll(ours, 1, axis=0)).max() > 1e-3


def test_bert_base():
    config = config_of("coco_grid")
    tower = golden_module(
        lambda: build_text_encoder(config, rngs=nnx.Rngs(0)),
        keys.BERT_ENCODER,
        "txt_enc.",
    )
    rng = np.random.default_rng(0)
    lengths = np.array([128, 16, 9, 2], np.int32)
    ids = rng.integers(1, config.text.vocab_size, (4, 128))
    ids = np.where(np.arange(128) < lengths[:, None], ids, 0).astype(np.int32)
    ours = embed(tower, {"token_ids": ids, "token_lengths": lengths})
    peer = pytorch_peer.BertTower(config)
    check_equal(ours, peer_embed(peer, tower, keys.BERT_ENCODER, ids, lengths))


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("coco_grid", id="ResNet-101"),
        pytest.param("coco_grid_wsl", id="ResNeXt-101-32x8d"),
    ],
)
def test_cnn(recipe):
    config = config_of(recipe)
    tower = golden_module(
        lambda: build_image_encoder(config, rngs=nnx.Rngs(0)),
        keys.GRID_ENCODER,
        "img_enc.",
    )
    # Coarse squares: a CNN sees fine noise as one grey, and all embeddings as one.
    squares = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    side = config.image.size // 8
    images = squares.repeat(side, axis=1).repeat(side, axis=2)
    ours = embed(tower, {"images": images})
    peer = pytorch_peer.GridTower(config)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    check_equal(ours, peer_embed(peer, tower, keys.GRID_ENCODER, channels_first))
