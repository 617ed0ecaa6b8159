"""A SigLIP of transformers with random weights, and its folder."""

import json

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from configs import common
from vse_jax.models.build import build_model, merge_model, split_model
from vse_jax.weights.siglip import (
    ZERO_SHOT,
    load_siglip,
    siglip_pixels,
    siglip_sizes,
)

PAD, EOS, VOCAB, POSITIONS, SIZE = 0, 1, 90, 12, 32
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,  # no multiple of hidden_size, as in So400m
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "projection_size": 24,
    "bos_token_id": 2,
    "eos_token_id": EOS,
}


def peer(vision=VISION, text=TEXT):
    """The PyTorch model; its weights are so large that everything counts."""
    torch.manual_seed(0)
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


def write_folder(folder, peer):
    """The model as it is published: config.json, model.safetensors."""
    peer.save_pretrained(folder)
    processor = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": SIZE, "width": SIZE},
        "image_processor_type": "SiglipImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def batch(lengths, size=SIZE, vocab=VOCAB, longest=None):
    rng = np.random.default_rng(0)
    ids = rng.integers(2, vocab, (len(lengths), longest or max(lengths)))
    return {
        "images": jnp.asarray(rng.normal(size=(len(lengths), size, size, 3)), "f4"),
        "token_ids": jnp.asarray(ids, jnp.int32),
        "token_lengths": jnp.asarray(lengths),
    }


def inputs(batch, positions=POSITIONS):
    """The batch as the PyTorch model takes it: captions padded to all positions."""
    ids = np.full((len(batch["token_ids"]), positions), PAD, np.int64)
    for row, given, length in zip(
        ids, batch["token_ids"], batch["token_lengths"], strict=True
    ):
        row[:length] = given[:length]
    images = np.asarray(batch["images"]).transpose(0, 3, 1, 2)
    return {
        "input_ids": torch.from_numpy(ids),
        "pixel_values": torch.from_numpy(np.ascontiguousarray(images)),
    }


def config_of(folder):
    """The config of a folder's model."""
    config = common.base()
    config.update_from_flattened_dict(
        {**siglip_sizes(folder), **siglip_pixels(folder), **ZERO_SHOT}
    )
    return config


def loaded(folder, config=None):
    """The model of a folder, as a module."""
    config = config or config_of(folder)
    graphdef, model = split_model(build_model(config, rngs=nnx.Rngs(0)))
    return merge_model(
        graphdef, model | {"params": load_siglip(folder, model["params"])}
    )
