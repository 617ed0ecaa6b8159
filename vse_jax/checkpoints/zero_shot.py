"""A published SigLIP: its sizes in a config, and the model without training."""

import contextlib
from pathlib import Path
from typing import Any

from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import resolve_folder
from vse_jax.checkpoints.siglip import (
    ZERO_SHOT,
    load_siglip,
    siglip_pixels,
    siglip_sizes,
)
from vse_jax.config import ADDED, Config, nested
from vse_jax.data.tokenizers import FileTokenizer
from vse_jax.data.vocabulary import find_vocabulary
from vse_jax.distributed.mesh import put_sharded, state_sharding, with_sharding
from vse_jax.models.build import abstract_model

# The other fields that a model in use reads, for a folder that no config goes with.
_IN_USE: dict[str, Any] = {
    "compute_dtype": "float32",
    "matmul_precision": "auto",
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "data.token_buckets": (64,),
    "image.normalise": True,
    "image.drop": 0.0,
    "text.normalise": True,
    "text.vocab": None,
    "text.augment": 0.0,
    "text.cache_features": False,
    "loss.margin": 0.2,
    "loss.vse_mean_warmup_epochs": 0,
    "eval.batch_size": None,
}


def folder_config(folder: Path, base: Config | None = None) -> Config:
    """The config of the model that a SigLIP's Hugging Face folder holds.

    Args:
        folder: of the model.
        base: a config with all fields, that of the model is to be put into; None: it
            has those only that a model in use reads.

    Raises:
        InputError: it is another model than models/ can build; names what differs.
    """
    found = siglip_sizes(folder) | siglip_pixels(folder) | ZERO_SHOT
    found |= {"image.weights": str(folder), "text.weights": str(folder)}
    found["data.max_tokens"] = found["text.max_positions"]
    if base is None:
        config = ConfigDict(nested(ADDED | _IN_USE | found))
    else:
        config = base
        config.update_from_flattened_dict(found)
    settle_siglip(config)
    return config


def settle_siglip(config: Config) -> None:
    """Puts the sizes of the SigLIP folders that a config names into its fields.

    Not the pictures' size: position embeddings are resized. A folder that is not there
    is no error: a run that goes on, or is evaluated, has its sizes.

    Raises:
        InputError: a folder of another architecture, or without its tokenizer.
    """
    for tower, kind in (("image", "vit"), ("text", "siglip")):
        fields = config[tower]
        if fields.kind != kind or fields.weights is None:
            continue
        folder = None
        with contextlib.suppress(InputError):
            folder = resolve_folder(fields.weights)
        if folder is None:
            continue
        sizes = siglip_sizes(folder)
        found = {field: n for field, n in sizes.items() if field.startswith(tower)}
        found.pop("image.size", None)
        if tower == "image":
            found |= siglip_pixels(folder)
        else:
            found["text.pad_id"] = FileTokenizer(find_vocabulary(config), 3).pad_id
        if fields.pool == ZERO_SHOT[f"{tower}.pool"]:
            found["embed_dim"] = sizes["embed_dim"]
        config.update_from_flattened_dict(found)


def is_zero_shot(config: Config) -> bool:
    """Whether a config is a published SigLIP's, from its folder."""
    flat = nested(ZERO_SHOT)
    as_published = all(
        config[part][name] == value
        for part, fields in flat.items()
        for name, value in fields.items()
    )
    weights = config.image.get("weights")  # a shared config has none
    return as_published and weights is not None and weights == config.text.weights


def zero_shot_model(
    config: Config, mesh: Mesh
) -> tuple[nnx.GraphDef, dict[str, Any], Mesh]:
    """(graph definition, model, mesh) with the weights that the config names."""
    folder = resolve_folder(config.image.weights)
    settle_siglip(config)
    graphdef, abstract = abstract_model(config)
    abstract = with_sharding(abstract, state_sharding(mesh, abstract))
    params = put_sharded(load_siglip(folder, abstract["params"]), abstract["params"])
    logging.info("%s: the published model, not trained any further", folder)
    return graphdef, abstract | {"params": params}, mesh
