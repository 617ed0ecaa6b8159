"""A SigLIP of transformers with random weights, and its folder."""

import json

import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers
from flax import nnx

from tests.helpers import tiny
from vse_jax.checkpoints.siglip import load_siglip, siglip_config
from vse_jax.models.build import build_model, merge_model, split_model

PAD, EOS, VOCAB, POSITIONS, SIZE = 0, 1, 90, 12, 32
TRAINED_ON = (("red", "circle", "left"), ("blue", "cross", "top"))
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
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder, vocab=VOCAB, *, texts=None):
    """tokenizer.json and tokenizer_config.json as SigLIP2's, with few words.

    `texts`: what it is trained on; then its vocabulary has the 256 bytes, too.
    """
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    model = tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    split = tokenizers.pre_tokenizers.Split
    pieces.pre_tokenizer = split("▁", "merged_with_next")  # no piece spans two words
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, show_progress=False
    )
    few = [text for parts in TRAINED_ON for text in tiny.captions(*parts)]
    pieces.train_from_iterator(texts or few, trainer)
    if texts:
        content = json.loads(pieces.to_str())
        known = content["model"]["vocab"]
        known |= {f"<0x{i:02X}>": len(known) + i for i in range(256)}
        pieces = tokenizers.Tokenizer.from_str(json.dumps(content))
    pieces.pre_tokenizer = split(" ", "merged_with_previous")  # as published: nothing
    missing = vocab - pieces.get_vocab_size()
    pieces.add_tokens([f"<unused{i}>" for i in range(missing)])
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", EOS)]
    )
    pieces.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "Siglip2Tokenizer",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "padding_side": "right",
        "model_max_length": POSITIONS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


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


def loaded(folder):
    """The model of a folder, as a module."""
    config = siglip_config(folder)
    graphdef, model = split_model(build_model(config, rngs=nnx.Rngs(0)))
    params = load_siglip(folder, model["params"])
    return merge_model(graphdef, model | {"params": params})
