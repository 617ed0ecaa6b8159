"""The published CNNs: their shapes, and their weights as a folder of our own format."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from vse_jax.base.errors import InputError
from vse_jax.base.files import whole_folder
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.config import BackboneConfig
from vse_jax.models.resnet import ResNet


class Kind(NamedTuple):
    """A value of the official --backbone_source, in fields of config.image."""

    block: str
    layers: tuple[int, ...]
    pixels: str
    groups: int = 1
    group_width: int = 64


KINDS = {
    # ResNet-101 of the BUTD detector, from Caffe.
    "detector": Kind("v1", (3, 4, 23, 3), "detector"),
    # Torchvision's weights, run with the stride where Caffe has it.
    "imagenet": Kind("v1", (3, 4, 23, 3), "imagenet"),
    "imagenet_res50": Kind("v1", (3, 4, 6, 3), "imagenet"),
    "imagenet_res152": Kind("v1", (3, 8, 36, 3), "imagenet"),
    # ResNeXt-101 32×8d; wsl: pretrained on the hashtags of Instagram images.
    "imagenet_resnext": Kind("torchvision", (3, 4, 23, 3), "imagenet", 32, 8),
    "wsl": Kind("torchvision", (3, 4, 23, 3), "imagenet", 32, 8),
}
# Of wsl's weights, and of what is trained from them.
WSL_LICENSE = "cc-by-nc-4.0"


def convert_backbone(file: Path, kind: str, output: Path) -> None:
    """Writes a pretrained CNN as a folder that config.image.weights can name.

    Args:
        file: of torch.save: {'base': state dict, 'top': state dict} (the official
            detector backbone) or torchvision's names (ImageNet, WSL).
        kind: one of `KINDS`.
        output: new folder, gets backbone.safetensors and backbone.json.

    Raises:
        InputError: an unknown kind, an unreadable file, or one of another CNN.
    """
    if kind not in KINDS:
        raise InputError(f"--kind: {kind!r} is none of {', '.join(KINDS)}")
    with whole_folder(output) as folder:
        stored = torch_file.read_tensors(file, "base", "top")
        if {"base", "top"} <= stored.keys():
            parts = {part: stored[part] for part in ("base", "top")}
            if not all(isinstance(tensors, dict) for tensors in parts.values()):
                raise InputError(f"{file}: 'base' and 'top' hold no state dicts")
            stored = {
                f"{part}.{k}": x for part in parts for k, x in parts[part].items()
            }
        table, _, stored = keys.unwrapped(stored, keys.BACKBONES, str(file))
        tensors = torch_file.arrays(stored, str(file))
        cnn = nnx.eval_shape(lambda: build(KINDS[kind]))
        template = nnx.to_pure_dict(nnx.state(cnn))
        keys.from_torch(tensors, table, template, str(file))  # only to check it
        kept = {key: x for key, x in tensors.items() if not table.ignores(key)}
        torch_file.write_safetensors(folder / "backbone.safetensors", kept)
        backbone = KINDS[kind]._asdict()
        about = {"kind": kind, "source": file.name, "pixels": backbone.pop("pixels")}
        text = json.dumps(about | {"backbone": backbone}, indent=1)
        (folder / "backbone.json").write_text(f"{text}\n", encoding="utf-8")


def build(kind: Kind) -> ResNet:
    """The kind's CNN with random weights."""
    cnn = BackboneConfig(
        block=kind.block,
        layers=kind.layers,
        groups=kind.groups,
        group_width=kind.group_width,
    )
    return ResNet(cnn, dtype=np.dtype(np.float32), rngs=nnx.Rngs(0))
