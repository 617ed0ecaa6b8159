"""The towers of a model as StableHLO: programs that run without this package."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import Array

from vse_jax.base.trees import flatten, merge
from vse_jax.config import Config
from vse_jax.data.collate import Shapes, caption_shapes, image_shapes
from vse_jax.data.tokenizers import padded_lengths
from vse_jax.distributed.runtime import matmul_precision
from vse_jax.models.build import merge_model, split_model
from vse_jax.models.vse import l2_normalise

PLATFORMS = ("cpu", "cuda", "tpu")


class Tower(NamedTuple):
    """A tower as a program.

    arrays: what the program is called with first, {path: float32}.
    inputs: what it is called with then, in this order; their first dimension, the
        batch, may be any.
    program: of `jax.export.deserialize`; gives the embeddings, float32 [batch, D].
    """

    arrays: dict[str, np.ndarray]
    inputs: Shapes
    program: bytes


def export_towers(
    config: Config, graphdef: nnx.GraphDef, model: dict[str, Any]
) -> dict[str, Tower]:
    """Both towers, {"image", "text"}, for all of `PLATFORMS`.

    Captions are padded to one length, the longest that the model takes: a pooling that
    sorts needs the size of its sets. What the platforms compute in different ways
    (models/sorted_pool.py) is in the program for each of them.

    Args:
        config: of the model.
        graphdef, model: its parts, arrays on the host.
    """
    vse = merge_model(graphdef, model)
    images = image_shapes(config.image, 1)
    captions = caption_shapes(1, padded_lengths(config)[-1])
    captions = {name: captions[name] for name in ("token_ids", "token_lengths")}
    return {
        "image": _export(config, vse.image, images, vse.normalise_images),
        "text": _export(config, vse.text, captions, vse.normalise_captions),
    }


def _export(
    config: Config, tower: nnx.Module, inputs: Shapes, normalise: bool
) -> Tower:
    graphdef, tree = split_model(tower)
    arrays = {name: np.asarray(x) for name, x in flatten(tree).items()}

    def run(arrays: dict[str, Array], *values: Array) -> Array:
        held = merge(tree, arrays)
        module = nnx.merge(graphdef, held["params"], held["batch_stats"])
        pooled = module(dict(zip(inputs, values, strict=True)))
        return l2_normalise(pooled) if normalise else pooled

    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    values = [
        jax.ShapeDtypeStruct((batch, *shape[1:]), dtype)
        for shape, dtype in inputs.values()
    ]
    # One precision for all platforms: that of 'auto' on accelerators, since on CPUs
    # every one of them is float32.
    with jax.default_matmul_precision(matmul_precision(config, "cuda")):
        exported = export.export(jax.jit(run), platforms=PLATFORMS)(shapes, *values)
    return Tower(arrays, inputs, bytes(exported.serialize()))
