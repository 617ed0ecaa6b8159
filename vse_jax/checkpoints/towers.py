"""The pretrained weights that a config names, put into a model."""

from typing import Any

from absl import logging

from vse_jax.base.files import resolve_folder
from vse_jax.checkpoints import pretrained, siglip
from vse_jax.config import Config, tower_config
from vse_jax.distributed.mesh import put_sharded


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
        pretrained.check_bert_sizes(folder, config.text)
        bert = pretrained.load_bert(folder, params["text"]["bert"])
        text = params["text"] | {"bert": put_sharded(bert, params["text"]["bert"])}
        params = params | {"text": text}
        logging.info("BERT weights from %s", folder)
    if config.image.kind == "grid" and config.image.weights is not None:
        folder = resolve_folder(config.image.weights)
        pretrained.check_backbone_kind(folder, config.image)
        like = {
            "params": params["image"]["backbone"],
            "batch_stats": stats["image"]["backbone"],
        }
        loaded = put_sharded(pretrained.load_backbone(folder, like), like)
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
        found = put_sharded(siglip.load_siglip(folder, wanted), wanted)
        params = params | {name: params[name] | found[name] for name in found}
        logging.info("SigLIP weights of the %s tower from %s", tower, folder)
    return {"params": params, "batch_stats": stats}
