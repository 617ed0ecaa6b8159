"""The state that training keeps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx, struct
from jax.sharding import Mesh

from vse_jax.base.files import resolve_folder
from vse_jax.checkpoints import pretrained, siglip
from vse_jax.config import Config
from vse_jax.distributed.mesh import (
    put_sharded,
    state_sharding,
    update_sharding,
    with_sharding,
)
from vse_jax.models.build import build_model, split_model
from vse_jax.optimizer import Optimizer


@struct.dataclass
class TrainState:
    """Everything a step reads and writes: arrays, or their shapes.

    step: finished steps, int32 scalar. params, batch_stats: nested dicts of the model.
    opt_state: per group of parameters. rng: typed key; a step folds its number in.
    """

    step: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]
    rng: Any

    @property
    def model(self) -> dict[str, Any]:
        """The part that evaluation needs."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def rest(self) -> dict[str, Any]:
        """The part that only training needs."""
        return {"step": self.step, "opt_state": self.opt_state, "rng": self.rng}


def abstract_state(
    optimizer: Optimizer, model: dict[str, Any], mesh: Mesh
) -> TrainState:
    """Shapes and shardings of `initial_state`, from those of the model."""
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=model["params"],
        batch_stats=model["batch_stats"],
        opt_state=jax.eval_shape(optimizer.init, model["params"]),
        rng=jax.eval_shape(lambda: jax.random.key(0)),
    )
    moments = update_sharding(mesh, shapes.opt_state)
    shardings = dataclasses.replace(state_sharding(mesh, shapes), opt_state=moments)
    return with_sharding(shapes, shardings)


def initial_state(
    config: Config, optimizer: Optimizer, abstract: TrainState
) -> TrainState:
    """The state before the first step, placed as `abstract` is.

    Random weights from `config.seed`, and the config's pretrained ones.
    """
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    _, drawn = split_model(build_model(config, rngs=nnx.Rngs(params=init_key)))

    def rest():
        moments = optimizer.init(jax.tree.map(jnp.zeros_like, abstract.params))
        return {"step": jnp.zeros((), jnp.int32), "opt_state": moments, "rng": run_key}

    shardings = jax.tree.map(lambda x: x.sharding, abstract.rest)
    state = TrainState(
        **put_sharded(drawn, abstract.model), **jax.jit(rest, out_shardings=shardings)()
    )
    return load_pretrained(config, state)


def load_pretrained(config: Config, state: TrainState) -> TrainState:
    """Replaces the towers' weights that `config.{text,image}.weights` name."""
    params, stats = state.params, state.batch_stats
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
        params = params | {
            "image": params["image"] | {"backbone": loaded["params"]},
        }
        stats = stats | {
            "image": stats["image"] | {"backbone": loaded["batch_stats"]},
        }
        logging.info("CNN weights from %s", folder)
    params = _load_siglip(config, params)
    return dataclasses.replace(state, params=params, batch_stats=stats)


def _load_siglip(config: Config, params: dict[str, Any]) -> dict[str, Any]:
    """Replaces what the SigLIP folders of the config hold.

    A tower's own pooling comes with it; temperature and bias where both do.
    """
    own = config.image.pool == "map", config.text.pool == "last"
    parts = {
        "image": ("vit", "gpool") if own[0] else ("vit",),
        "text": ("siglip", "linear") if own[1] else ("siglip",),
    }
    loaded = 0
    for tower, kind in (("image", "vit"), ("text", "siglip")):
        fields = config[tower]
        if fields.kind != kind or fields.weights is None:
            continue
        folder = resolve_folder(fields.weights)
        wanted = {tower: {part: params[tower][part] for part in parts[tower]}}
        loaded += 1
        if loaded == 2 and all(own) and config.loss.name == "sigmoid":
            wanted["loss"] = params["loss"]
        found = put_sharded(siglip.load_siglip(folder, wanted), wanted)
        params = params | {name: params[name] | found[name] for name in found}
        logging.info("SigLIP weights of the %s tower from %s", tower, folder)
    return params
