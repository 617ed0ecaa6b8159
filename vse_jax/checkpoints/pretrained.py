"""Pretrained weights that training starts from: BERT, CNN backbones, SigLIP."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_object, resolve_folder
from vse_jax.base.registry import is_path
from vse_jax.base.trees import flatten, merge
from vse_jax.checkpoints.folder import is_siglip, model_config, model_folder
from vse_jax.checkpoints.load import load_model, resolve
from vse_jax.checkpoints.siglip import load_siglip
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.config import (
    EVALUATION,
    Config,
    ImageConfig,
    check_same_run,
    encoder_config,
    with_fields,
)
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
# SigLIP's encoders: config.{image,text}.kind, the .pool that is their own, and the part
# of the model that comes with it.
_SIGLIP = {"image": ("vit", "map", "gpool"), "text": ("siglip", "last", "linear")}
# What models/bert.py builds; a field that is absent has the same meaning.
_BERT_KIND = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}


def resolve_start(config: Config, model: AnyPath) -> Config:
    """The config of a run that starts from the model in a folder.

    Of a published SigLIP, both towers are pretrained weights: `load_pretrained` takes
    of them what the config's model has. Any other model is taken whole.

    Raises:
        InputError: the config is that of another model.
    """
    if not is_siglip(model):
        check_same_run(config, model / "config.json", EVALUATION)
        own = {"image.weights": None, "text.weights": None}
        return resolve(with_fields(config, own), model)
    for name, (kind, *_) in _SIGLIP.items():
        found = encoder_config(config, name).kind
        if found != kind:
            raise InputError(
                f"{model}: a published SigLIP, but config.{name}.kind is {found!r}, "
                f"not {kind!r} (as in configs/coco_siglip2.py)"
            )
    return resolve(config, model)


def load_start(
    config: Config, folder: AnyPath, model: dict[str, Any]
) -> dict[str, Any]:
    """The best model in a folder, placed as a new one, {"params", "batch_stats"}.

    What the new one has beside the encoders stays, unless its loss is the same.

    Raises:
        InputError: no model there, or another one than the config's.
    """
    loss = model_config(folder, trust_code=True).loss
    if loss.name != config.loss.name and is_path(loss.name):
        raise InputError(
            f"config.loss.name: {config.loss.name!r}, but the model in {folder} has "
            f"its author's loss {loss.name}; name that"
        )
    loaded = load_model(dataclasses.replace(config, loss=loss), folder).arrays
    taken = dict(loaded["params"])
    if loss.name != config.loss.name:
        taken.pop("loss", None)
    logging.info("weights from %s", folder)
    shardings = jax.tree.map(lambda x: x.sharding, model)
    return jax.device_put(loaded | {"params": model["params"] | taken}, shardings)


def begins_whole(config: Config) -> bool:
    """Whether a run's weights are given as a whole model, which ranks already.

    `config`: as a run begins, or as it saved it: another model, or both towers of a
    published SigLIP with the poolings that come with them.
    """
    towers = {name: encoder_config(config, name) for name in _SIGLIP}
    if all(tower.weights is None for tower in towers.values()):
        return config.weights is not None
    return all(
        tower.weights is not None and (tower.kind, tower.pool) == _SIGLIP[name][:2]
        for name, tower in towers.items()
    )


def load_whole_start(config: Config, model: dict[str, Any]) -> dict[str, Any]:
    """The model that a run began from (`begins_whole`), placed as its own `model`.

    Raises:
        InputError: it is not there any more, or another one than the config's.
    """
    if config.image.weights is not None:
        return load_pretrained(config, model)
    assert config.weights is not None
    folder = model_folder(config.weights, "config.weights")
    return load_start(config, folder, model)


def load_pretrained(config: Config, model: dict[str, Any]) -> dict[str, Any]:
    """Replaces the weights that config.{text,image}.weights name.

    Of a new model: {"params", "batch_stats"}, placed on the mesh.

    Raises:
        InputError: weights that are not there, or of another architecture or size.
    """
    params = model["params"]
    loaded: dict[str, Any] = {}

    def put(path: str, tree: dict[str, Any], like: dict[str, Any]) -> None:
        placed = flatten(put_sharded(tree, like))
        loaded.update({f"{path}/{name}": leaf for name, leaf in placed.items()})

    if config.text.kind == "bert" and config.text.weights is not None:
        folder = resolve_folder(config.text.weights)
        for field, size in bert_sizes(folder).items():
            if (ours := getattr(config.text, field)) != size:
                raise InputError(
                    f"config.text.{field}: {ours}, but the BERT in {folder} has {size}"
                )
        like = params["text"]["bert"]
        put("params/text/bert", load_bert(folder, like), like)
        logging.info("BERT weights from %s", folder)
    if config.image.kind == "grid" and config.image.weights is not None:
        folder = resolve_folder(config.image.weights)
        check_backbone_kind(folder, config.image)
        like = {name: model[name]["image"]["backbone"] for name in model}
        backbone = load_backbone(folder, like)
        for name in model:
            put(f"{name}/image/backbone", backbone[name], like[name])
        logging.info("CNN weights from %s", folder)

    complete = 0  # SigLIP's encoders with their own pooling, which comes with them
    for name, (kind, own, pooling) in _SIGLIP.items():
        fields = encoder_config(config, name)
        if fields.kind != kind or fields.weights is None:
            continue
        folder = resolve_folder(fields.weights)
        parts = (kind, pooling) if fields.pool == own else (kind,)
        wanted = {name: {part: params[name][part] for part in parts}}
        complete += fields.pool == own
        if complete == 2 and config.loss.name == "sigmoid":  # its temperature and bias
            wanted["loss"] = params["loss"]
        put("params", load_siglip(folder, wanted), wanted)
        logging.info("SigLIP weights of the %s encoder from %s", name, folder)
    return merge(model, loaded)


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


def load_bert(folder: Path, template: dict) -> dict:
    """The parameters of `models.bert.Bert` from a Hugging Face folder.

    Raises:
        InputError: its file cannot be read or does not fit the `template`, a tree of
            the module's (abstract) parameters.
    """
    source, stored = torch_file.read_folder(folder)
    # bert-base-uncased was saved under its first TensorFlow names, later models not.
    renamed = {
        key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): tensor
        for key, tensor in stored.items()
    }
    _, _, tensors = keys.unwrapped(renamed, [keys.BERT], source)
    return keys.from_torch(tensors, keys.BERT, template, source)


def load_backbone(folder: Path, template: dict) -> dict:
    """The parameters and statistics of `models.resnet.ResNet` from a folder.

    It holds backbone.safetensors, under the official or torchvision's keys.

    Raises:
        InputError: the file cannot be read or does not fit the `template`, a tree of
            the module's (abstract) parameters and statistics.
    """
    file = folder / "backbone.safetensors"
    stored = torch_file.read_safetensors(file)
    table, _, tensors = keys.unwrapped(stored, keys.BACKBONES, str(file))
    return keys.from_torch(tensors, table, template, str(file))


def check_backbone_kind(folder: Path, image: ImageConfig) -> None:
    """Checks what the tensors' shapes do not show: block kind and pixel preparation.

    convert_torch_weights.py leaves a backbone.json in the folder; without one, nothing
    is checked.

    Raises:
        InputError: the config would run the CNN otherwise than it was trained.
    """
    file = folder / "backbone.json"
    if not file.exists():
        return
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        block, pixels = about["backbone"]["block"], about["pixels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: {error!r}") from None
    for field, now, trained in (
        ("pixels", image.pixels, pixels),
        ("backbone.block", image.backbone.block, block),
    ):
        if now != trained:
            raise InputError(
                f"config.image.{field}: {now!r}, but {file} is for {trained!r}"
            )
