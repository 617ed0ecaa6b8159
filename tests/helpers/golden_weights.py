"""Golden arrays of the official PyTorch code, and the stand-in weights behind them.

A golden file holds inputs and outputs only. The weights that produced the outputs are
rebuilt from each tensor's PyTorch state-dict key and shape; RandomState's stream is the
same in every NumPy version.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vse_jax.checkpoints.torch.keys import Table, from_torch, to_torch

M = TypeVar("M", bound=nnx.Module)
FOLDER = Path(__file__).parents[1] / "golden"


def load(name: str, case: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of a golden file whose names start with `case`, without it."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {k.removeprefix(case): file[k] for k in file if k.startswith(case)}


def golden_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the tensor `key` of PyTorch layout `shape`, float32."""
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    x = rng.standard_normal(shape).astype(np.float32)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return (1 + 0.1 * np.abs(x)).astype(np.float32)
    if leaf == "running_mean":
        return (0.1 * x).astype(np.float32)
    if len(shape) >= 2:  # kernels and embeddings
        fan_in = int(np.prod(shape[1:]))
        gain = 2.0 if len(shape) == 4 else 1.0
        return (x * np.sqrt(gain / fan_in)).astype(np.float32)
    if leaf == "weight":  # norm scales; small on the last norm of a residual branch
        base = 0.2 if ".bn3." in key else 1.0
        return (base * (1 + 0.1 * x)).astype(np.float32)
    return (0.1 * x).astype(np.float32)  # biases


def golden_module(build: Callable[[], M], table: Table, prefix: str) -> M:
    """Returns the module that `build` makes, with the weights of `prefix` + key.

    Its own start values are never computed.
    """
    graphdef, state = nnx.split(nnx.eval_shape(build))
    template = nnx.to_pure_dict(state)
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), template)
    tensors = {
        key: golden_weight(prefix + key, tensor.shape)
        for key, tensor in to_torch(empty, table).items()
    }
    tree = from_torch(tensors, table, template, "golden")
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, tree))


def parameter_gradients(module: nnx.Module, function) -> dict:
    """Returns the gradient tree of the scalar function(module) in its parameters."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def scalar(params):
        return function(nnx.merge(graphdef, params, nnx.to_pure_dict(rest)))

    return jax.jit(jax.grad(scalar))(nnx.to_pure_dict(params))


def relative_error(actual, expected) -> float:
    """Returns |actual − expected| / |expected|, Euclidean norms."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
