"""Pretrained weights that training starts from: BERT and CNN backbones."""

import json
import re
from pathlib import Path

import numpy as np
import safetensors

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_object
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.config import ImageConfig, TextConfig

# Our config.text fields: their names in a Hugging Face config.json.
_BERT_SIZES = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
# What models/bert.py builds; a field that is absent has the same meaning.
_BERT_KIND = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}


def bert_sizes(folder: Path) -> dict[str, int]:
    """The fields of config.text that a Hugging Face BERT folder decides.

    Raises:
        InputError: config.json is missing, broken or not that of a plain BERT.
    """
    file = folder / "config.json"
    config = read_object(file)
    for field, expected in _BERT_KIND.items():
        if config.get(field, expected) != expected:
            raise InputError(f"{file}: {field} is {config[field]!r}, not {expected!r}")
    missing = [field for field in _BERT_SIZES.values() if field not in config]
    if missing:
        raise InputError(f"{file}: no field {', '.join(missing)}")
    return {field: config[name] for field, name in _BERT_SIZES.items()}


def check_bert_sizes(folder: Path, text: TextConfig) -> None:
    """Checks that `config.text` is of the folder's BERT; no shape shows its heads.

    Raises:
        InputError: a size differs, or config.json is not that of a plain BERT.
    """
    for field, size in bert_sizes(folder).items():
        ours = getattr(text, field)
        if ours != size:
            raise InputError(
                f"config.text.{field}: {ours}, but the BERT in {folder} has {size}"
            )


def load_bert(folder: Path, template: dict) -> dict:
    """The parameters of `models.bert.Bert` from a Hugging Face folder.

    Args:
        folder: as `read_folder` takes it.
        template: tree of the module's (abstract) parameters.

    Raises:
        InputError: the file cannot be read or does not fit the template.
    """
    source, stored = read_folder(folder)
    # bert-base-uncased was saved under its first TensorFlow names, later models not.
    first = {"gamma": "weight", "beta": "bias"}
    pattern = r"(?<=LayerNorm\.)(gamma|beta)$"
    renamed = {
        re.sub(pattern, lambda name: first[name[0]], key): tensor
        for key, tensor in stored.items()
    }
    _, _, tensors = keys.unwrapped(renamed, [keys.BERT], source)
    return keys.from_torch(tensors, keys.BERT, template, source)


def load_backbone(folder: Path, template: dict) -> dict:
    """The parameters and statistics of `models.resnet.ResNet` from a folder.

    Args:
        folder: holds backbone.safetensors, under the official or torchvision's keys.
        template: tree of the module's (abstract) parameters and statistics.

    Raises:
        InputError: the file cannot be read or does not fit the template.
    """
    source = str(folder / "backbone.safetensors")
    stored = _read_tensors(folder / "backbone.safetensors")
    table, _, tensors = keys.unwrapped(stored, keys.BACKBONES, source)
    return keys.from_torch(tensors, table, template, source)


def check_backbone_kind(folder: Path, image: ImageConfig) -> None:
    """Checks what the tensors' shapes do not show: block kind and pixel preparation.

    Args:
        folder: as for `load_backbone`; convert_torch_weights.py leaves a backbone.json
            there, and without one nothing is checked.
        image: config.image.

    Raises:
        InputError: the config would run the CNN otherwise than it was trained.
    """
    file = folder / "backbone.json"
    if not file.exists():
        return
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        checked = {
            "config.image.pixels": (image.pixels, about["pixels"]),
            "config.image.backbone.block": (
                image.backbone.block,
                about["backbone"]["block"],
            ),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: {error!r}") from None
    for field, (now, trained) in checked.items():
        if now != trained:
            raise InputError(f"{field}: {now!r}, but {file} is for {trained!r}")


def read_folder(folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """(what the file is called, tensors) of a Hugging Face folder.

    It holds model.safetensors, or pytorch_model.bin (PyTorch then reads it), or several
    such files and their index. huggingface_hub reads these, too, but with PyTorch only.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return str(file), _read_tensors(file)
        if index.is_file():
            places = read_object(index).get("weight_map")
            parts = set(places.values()) if isinstance(places, dict) else set()
            beside = (
                isinstance(part, str) and Path(part).name == part for part in parts
            )
            if not parts or not all(beside):
                raise InputError(
                    f"{index}: no weight_map of tensors to files beside it"
                )
            tensors: dict[str, np.ndarray] = {}
            for part in sorted(parts):
                tensors |= _read_tensors(folder / part)
            return str(index), tensors
    raise InputError(f"{folder}: no model.safetensors and no pytorch_model.bin")


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; bfloat16, which NumPy knows with JAX, as float32."""
    if file.suffix != ".safetensors":
        return torch_file.arrays(torch_file.read_tensors(file), str(file))
    try:
        with safetensors.safe_open(file, "np") as content:
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError) as error:
        raise InputError(f"{file}: {error}") from None  # TypeError: float8
    return {
        name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x
        for name, x in found.items()
    }
