"""Pretrained weights that training starts from: BERT, CNN backbones, SigLIP."""

import json
import re
from pathlib import Path
from typing import Any

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_object, resolve_folder
from vse_jax.checkpoints.siglip import load_siglip
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.config import Config, ImageConfig, TextConfig, tower_config
from vse_jax.distributed.mesh import put_sharded

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


def load_pretrained(config: Config, model: dict[str, Any]) -> dict[str, Any]:
    """Replaces the weights of a new model that config.{text,image}.weights name.

    Args:
        config: of the run.
        model: {"params", "batch_stats"}, placed on the mesh.

    Raises:
        InputError: weights that are not there, or of another architecture or size.
    """
    params, stats = model["params"], model["batch_stats"]
    if config.text.kind == "bert" and config.text.weights is not None:
        folder = resolve_folder(config.text.weights)
        check_bert_sizes(folder, config.text)
        bert = load_bert(folder, params["text"]["bert"])
        text = params["text"] | {"bert": put_sharded(bert, params["text"]["bert"])}
        params = params | {"text": text}
        logging.info("BERT weights from %s", folder)
    if config.image.kind == "grid" and config.image.weights is not None:
        folder = resolve_folder(config.image.weights)
        check_backbone_kind(folder, config.image)
        like = {
            "params": params["image"]["backbone"],
            "batch_stats": stats["image"]["backbone"],
        }
        loaded = put_sharded(load_backbone(folder, like), like)
        image = params["image"] | {"backbone": loaded["params"]}
        params = params | {"image": image}
        image = stats["image"] | {"backbone": loaded["batch_stats"]}
        stats = stats | {"image": image}
        logging.info("CNN weights from %s", folder)

    # A SigLIP tower's own pooling comes with it, temperature and bias with both towers.
    own_pooling = {
        "image": config.image.pool == "map",
        "text": config.text.pool == "last",
    }
    parts = {
        "image": ("vit", "gpool") if own_pooling["image"] else ("vit",),
        "text": ("siglip", "linear") if own_pooling["text"] else ("siglip",),
    }
    loaded_towers = []
    for tower, kind in (("image", "vit"), ("text", "siglip")):
        fields = tower_config(config, tower)
        if fields.kind != kind or fields.weights is None:
            continue
        folder = resolve_folder(fields.weights)
        wanted = {tower: {part: params[tower][part] for part in parts[tower]}}
        loaded_towers.append(tower)
        both = loaded_towers == ["image", "text"] and all(own_pooling.values())
        if both and config.loss.name == "sigmoid":
            wanted["loss"] = params["loss"]
        found = put_sharded(load_siglip(folder, wanted), wanted)
        params = params | {name: params[name] | found[name] for name in found}
        logging.info("SigLIP weights of the %s tower from %s", tower, folder)
    return {"params": params, "batch_stats": stats}


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
        folder: as `torch_file.read_folder` takes it.
        template: tree of the module's (abstract) parameters.

    Raises:
        InputError: the file cannot be read or does not fit the template.
    """
    source, stored = torch_file.read_folder(folder)
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
    stored = torch_file.read_safetensors(folder / "backbone.safetensors")
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
