"""From a config to a model, and from a model to its parts and back.

A model is handled in two parts: its graph definition, and plain dicts of its arrays.
Plain dicts under `jax.jit` dispatch far faster than `nnx.jit`, and a checkpoint of
plain dicts does not depend on how NNX spells its state.
"""

from typing import Any

import jax
from flax import nnx

from vse_jax.base.registry import Registry
from vse_jax.config import IMAGE_CLASSES, TEXT_CLASSES, Config
from vse_jax.losses import LOSSES
from vse_jax.models.vse import VSE

_CALLED_WITH = {"__call__": ("batch", "train", "rngs")}
IMAGE_ENCODERS = Registry("image encoder", IMAGE_CLASSES, nnx.Module, _CALLED_WITH)
TEXT_ENCODERS = Registry("text encoder", TEXT_CLASSES, nnx.Module, _CALLED_WITH)


def build_model(config: Config, *, rngs: nnx.Rngs) -> VSE:
    """The config's model; stream `params` of `rngs` initializes it."""
    return VSE(
        image=build_image_encoder(config, rngs=rngs),
        text=build_text_encoder(config, rngs=rngs),
        normalize_images=config.image.normalise,
        normalize_captions=config.text.normalise,
        dims=config.dims,
        loss=build_loss(config, rngs=rngs),
    )


def build_image_encoder(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The encoder that config.image.kind names (paper, section 3.1)."""
    kind = config.image.kind
    return IMAGE_ENCODERS.make("config.image.kind", kind, config=config, rngs=rngs)


def build_text_encoder(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The encoder that config.text.kind names (paper, section 3.1)."""
    kind = config.text.kind
    return TEXT_ENCODERS.make("config.text.kind", kind, config=config, rngs=rngs)


def build_loss(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The loss that config.loss.name names."""
    return LOSSES.make(
        "config.loss.name",
        config.loss.name,
        margin=config.loss.margin,
        warmup_epochs=config.loss.vse_mean_warmup_epochs,
        rngs=rngs,
    )


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """(graph definition, {"params", "batch_stats"}) of a VSE model."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = states
    return graphdef, {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(stats),
    }


def merge_model(graphdef: nnx.GraphDef, model: dict[str, Any]) -> VSE:
    """Inverse of `split_model`."""
    return nnx.merge(graphdef, model["params"], model["batch_stats"])


class _OneKey(nnx.Rngs):
    """The same key for every parameter: enough where only shapes are wanted.

    While shapes are traced flax takes seconds to count the keys of a stream.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_model(config: Config) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """As `split_model` of the config's model, with shapes instead of arrays."""
    return split_model(nnx.eval_shape(lambda: build_model(config, rngs=_OneKey())))
