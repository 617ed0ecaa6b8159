"""Checkpoints as the official program saves them, from the released files' layouts."""

import argparse
import json
import re
import zlib

import numpy as np
import torch

from tests.helpers.golden_weights import FOLDER
from vse_jax.checkpoints.torch.keys import OFFICIAL_CNN

# Every size of the released layouts that can shrink, so that they still fit together.
SMALL = {
    30522: 40,
    9481: 40,
    3072: 192,
    2048: 128,
    1024: 64,
    768: 64,
    512: 32,
    300: 12,
    256: 16,
    128: 8,
    64: 4,
}
# The program's options, as far as they matter, with the published values.
OPTIONS = {
    "data_path": "/somewhere/else",
    "data_name": "f30k_precomp",
    "embed_size": 1024,
    "img_dim": 2048,
    "precomp_enc_type": "basic",
    "backbone_source": "detector",
    "backbone_path": "/somewhere/else.pth",
    "num_epochs": 25,
    "batch_size": 128,
    "learning_rate": 5e-4,
    "lr_update": 15,
    "optim": "adam",
    "grad_clip": 2.0,
    "margin": 0.2,
    "max_violation": True,
    "vse_mean_warmup_epochs": 1,
    "embedding_warmup_epochs": 1,
    "backbone_warmup_epochs": 0,
    "backbone_lr_factor": 0.01,
    "input_scale_factor": 2.0,
    "no_imgnorm": False,
    "no_txtnorm": False,
}


def layout(name: str) -> list[dict[str, list]]:
    """Per tower: key → [shape, dtype] of a released checkpoint."""
    return json.loads((FOLDER / "checkpoint_layouts.json").read_text())[name]["model"]


def small_layout(
    name: str, blocks: int = 1, sizes: tuple[dict, dict] = (SMALL, SMALL)
) -> list[dict[str, tuple[int, ...]]]:
    """Per tower: key → shape, with other sizes and `blocks` layers in each stack."""
    stack = r"(?:encoder\.layer|base\.[456]|top\.0|resnet\.layer\d)\.(\d+)\."
    return [
        {
            key: tuple(changed.get(size, size) for size in shape)
            for key, (shape, _) in tower.items()
            if not (found := re.search(stack, key)) or int(found[1]) < blocks
        }
        for tower, changed in zip(layout(name), sizes, strict=True)
    ]


def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor that depends on its key; overlapping rows make it small at any size."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(zlib.crc32(key.encode()) % 1000)
    strides = range(len(shape), 0, -1)
    length = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    values = torch.from_numpy(rng.random(length, np.float32) / 16)
    return torch.as_strided(values, shape, tuple(strides))


def state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of these shapes; the CNN's two names share theirs, as in the program."""
    tensors = {key: tensor(key, tuple(shape)) for key, shape in shapes.items()}
    for key in tensors:
        name, _, rest = key.partition("backbone.resnet.")[2].partition(".")
        if name in OFFICIAL_CNN:
            prefix = key.partition("resnet.")[0]
            tensors[f"{prefix}{OFFICIAL_CNN[name]}.{rest}"] = tensors[key]
    return tensors


def checkpoint(name: str, *, blocks: int = 1, **options) -> dict:
    """A small checkpoint in the layout `name`."""
    source = "backbone" if name.startswith("grid") else "basic"
    return {
        "epoch": 12,
        "model": [state_dict(tower) for tower in small_layout(name, blocks)],
        "best_rsum": 431.5,
        "opt": argparse.Namespace(**OPTIONS | {"precomp_enc_type": source} | options),
        "Eiters": 53100,
    }
