"""LoRA: frozen matrices with trained updates of low rank (Hu et al., 2022).

A matrix W [in, out] is used as W + alpha / rank · A B (section 4.1), where A [in, rank]
and B [rank, out] lie among the parameters as lora/<path of W>/a and …/b. B starts at 0,
so that the model begins as it was.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten, merge
from vse_jax.config import LoraConfig
from vse_jax.models.layers import normal


def adapter_shapes(params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """{"lora": {path of a matrix: {"a", "b"}}}, float32; {} without a regex.

    `params`: the model's, or their shapes. What is no matrix gets no adapters.

    Raises:
        InputError: the regex matches no matrix.
    """
    if config.on is None:
        return {}
    found = {
        path: {
            "a": jax.ShapeDtypeStruct((leaf.shape[0], config.rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((config.rank, leaf.shape[1]), jnp.float32),
        }
        for path, leaf in flatten(params).items()
        if leaf.ndim == 2 and re.search(config.on, path)
    }
    if not found:
        raise InputError(
            f"config.optimizer.lora.on: {config.on!r} matches no matrix of the model"
        )
    return {"lora": found}


def init_adapters(shapes: dict[str, Any], rngs: nnx.Rngs) -> dict[str, Any]:
    """Arrays of `adapter_shapes`, on the host: A is random, from `params` of `rngs`."""

    def init(path, leaf):
        if path[-1].key == "b":
            return jnp.zeros(leaf.shape, leaf.dtype)
        return normal(leaf.shape[0] ** -0.5)(rngs.params(), leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(init, shapes)


def merged(params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The parameters of an ordinary model: each matrix with its update, no adapters."""
    own = {name: part for name, part in params.items() if name != "lora"}
    flat = flatten(own)
    updated = {
        path: flat[path]
        + config.alpha / config.rank * jnp.matmul(x["a"], x["b"], precision="highest")
        for path, x in params.get("lora", {}).items()
    }
    return merge(own, updated)
