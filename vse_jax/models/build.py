"""From a config to a model: the only place of models/ that reads a config.

A model is handled in two parts: its graph definition, and plain dicts of its arrays.
Plain dicts under `jax.jit` dispatch far faster than `nnx.jit`, and a checkpoint of
plain dicts does not depend on how NNX spells its state.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from vse_jax.base.registry import Registry
from vse_jax.config import Config
from vse_jax.losses import LOSSES
from vse_jax.models.bert import Bert
from vse_jax.models.gru import BiGRU
from vse_jax.models.image_encoder import (
    MLP,
    GridEncoder,
    RegionEncoder,
    ViTEncoder,
    xavier_linear,
)
from vse_jax.models.initializers import uniform
from vse_jax.models.layers import linear
from vse_jax.models.pooling import make_pool
from vse_jax.models.resnet import ResNet
from vse_jax.models.siglip import SiglipText
from vse_jax.models.text_encoder import BertEncoder, BiGRUEncoder, SiglipEncoder
from vse_jax.models.vit import ViT
from vse_jax.models.vse import VSE


def build_model(config: Config, *, rngs: nnx.Rngs) -> VSE:
    """The config's model; stream `params` of `rngs` gives the start values."""
    return VSE(
        image=build_image_tower(config, rngs=rngs),
        text=build_text_tower(config, rngs=rngs),
        normalise_images=config.image.normalise,
        normalise_captions=config.text.normalise,
        loss=build_loss(config, rngs=rngs),
    )


def build_image_tower(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The tower that config.image.kind names (paper, section 3.1)."""
    return IMAGE_TOWERS.make(
        "config.image.kind", config.image.kind, config=config, rngs=rngs
    )


def build_text_tower(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The tower that config.text.kind names (paper, section 3.1)."""
    return TEXT_TOWERS.make(
        "config.text.kind", config.text.kind, config=config, rngs=rngs
    )


def build_loss(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The loss that config.loss.name names."""
    return LOSSES.make(
        "config.loss.name",
        config.loss.name,
        margin=config.loss.margin,
        warmup_epochs=config.loss.vse_mean_warmup_epochs,
        rngs=rngs,
    )


# The order of the lines in these six decides which random numbers a module starts
# with: a run from a seed depends on it.


def _grid_tower(config: Config, rngs: nnx.Rngs) -> GridEncoder:
    dtype, cnn = np.dtype(config.compute_dtype), config.image.backbone
    backbone = ResNet(
        block=cnn.block,
        stem=cnn.stem,
        patch=cnn.patch,
        layers=cnn.layers,
        width=cnn.width,
        groups=cnn.groups,
        group_width=cnn.group_width,
        frozen_norm=cnn.batch_norm == "frozen",
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    fc = xavier_linear(backbone.channels, config.embed_dim, dtype=dtype, rngs=rngs)
    pool = _pool(config, "image", config.embed_dim, rngs)
    return GridEncoder(backbone, fc, pool, drop=config.image.drop)


def _region_tower(config: Config, rngs: nnx.Rngs) -> RegionEncoder:
    dtype = np.dtype(config.compute_dtype)
    features, embed = config.image.feature_dim, config.embed_dim
    fc = xavier_linear(features, embed, dtype=dtype, rngs=rngs)
    mlp = MLP(features, embed // 2, embed, dtype=dtype, rngs=rngs)
    return RegionEncoder(fc, mlp, _pool(config, "image", embed, rngs))


def _vit_tower(config: Config, rngs: nnx.Rngs) -> ViTEncoder:
    dtype, image, sizes = np.dtype(config.compute_dtype), config.image, config.image.vit
    vit = ViT(
        grid=image.size // sizes.patch,
        patch=sizes.patch,
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        ffn=sizes.ffn,
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    if image.pool == "map":  # SigLIP's own head, whose vector is the embedding
        head = {"heads": sizes.heads, "ffn": sizes.ffn}
        pool = _pool(config, "image", sizes.hidden, rngs, **head)
        return ViTEncoder(vit, None, pool, drop=image.drop)
    fc = xavier_linear(sizes.hidden, config.embed_dim, dtype=dtype, rngs=rngs)
    pool = _pool(config, "image", config.embed_dim, rngs)
    return ViTEncoder(vit, fc, pool, drop=image.drop)


def _siglip_tower(config: Config, rngs: nnx.Rngs) -> SiglipEncoder:
    dtype, text = np.dtype(config.compute_dtype), config.text
    siglip = SiglipText(
        vocab_size=text.vocab_size,
        hidden=text.hidden,
        layers=text.layers,
        heads=text.heads,
        ffn=text.ffn,
        positions=text.max_positions,
        pad_id=text.pad_id,
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    to_embedding = linear(text.hidden, config.embed_dim, dtype=dtype, rngs=rngs)
    pool = _pool(config, "text", config.embed_dim, rngs)
    return SiglipEncoder(siglip, to_embedding, pool, padded=text.pool == "last")


def _bert_tower(config: Config, rngs: nnx.Rngs) -> BertEncoder:
    dtype, text = np.dtype(config.compute_dtype), config.text
    bert = Bert(
        vocab_size=text.vocab_size,
        hidden=text.hidden,
        layers=text.layers,
        heads=text.heads,
        ffn=text.ffn,
        max_positions=text.max_positions,
        dropout=text.dropout,
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    to_embedding = linear(text.hidden, config.embed_dim, dtype=dtype, rngs=rngs)
    return BertEncoder(
        bert, to_embedding, _pool(config, "text", config.embed_dim, rngs)
    )


def _bigru_tower(config: Config, rngs: nnx.Rngs) -> BiGRUEncoder:
    dtype, text = np.dtype(config.compute_dtype), config.text
    embed = nnx.Embed(
        text.vocab_size,
        text.word_dim,
        embedding_init=uniform(0.1),
        rngs=rngs,
    )
    inputs = [text.word_dim] + [2 * config.embed_dim] * text.layers
    layers = [
        BiGRU(size, config.embed_dim, dtype=dtype, rngs=rngs)
        for size in inputs[: text.layers]
    ]
    size = config.embed_dim if text.layers else text.word_dim
    return BiGRUEncoder(embed, layers, _pool(config, "text", size, rngs))


def _pool(
    config: Config, tower: str, features: int, rngs: nnx.Rngs, **sizes: int
) -> nnx.Module:
    return make_pool(
        config[tower].pool,
        field=f"config.{tower}.pool",
        features=features,
        embed_dim=config.embed_dim,
        k=config[tower].pool_k,
        **sizes,
        rngs=rngs,
    )


_TOWER = {"__call__": ("batch", "train", "rngs")}
IMAGE_TOWERS: Registry[nnx.Module] = Registry(
    "image tower",
    {"grid": _grid_tower, "region": _region_tower, "vit": _vit_tower},
    nnx.Module,
    _TOWER,
)
TEXT_TOWERS: Registry[nnx.Module] = Registry(
    "text tower",
    {"bert": _bert_tower, "bigru": _bigru_tower, "siglip": _siglip_tower},
    nnx.Module,
    _TOWER,
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


def abstract_model(config: Config) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """As `split_model` of the config's model, with shapes instead of arrays."""

    def build():
        key = jax.random.key(0)
        rngs = nnx.Rngs()
        # One for all: flax takes seconds to count keys while shapes are traced.
        rngs.params = lambda: key
        return build_model(config, rngs=rngs)

    return split_model(nnx.eval_shape(build))
