"""The arrays of a model in one file that others can load: model.safetensors.

Named by their paths, float32: parameters (params/image/fc/kernel, …) and running
statistics (batch_stats/image/backbone/bn1/mean, …).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten, merge
from vse_jax.checkpoints.torch.keys import listed
from vse_jax.config import MODEL_FILE


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by their names, floating-point ones as float32.

    Raises:
        InputError: the file cannot be written.
    """
    found = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    for name, x in found.items():
        if np.issubdtype(x.dtype, np.floating):
            found[name] = x.astype(np.float32, copy=False)
    try:
        safetensors.numpy.save_file(found, file, metadata={"format": "vse_jax"})
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file}: {error}") from None


def read_model(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a shared model as a tree like `abstract`.

    Args:
        folder: of the model.
        abstract: {"params", "batch_stats"} of the model that its config describes, with
            shapes and types.

    Raises:
        InputError: the file cannot be read, or is of another model: names every
            missing, unexpected and misshapen array, and those with NaN or infinity.
    """
    file = folder / MODEL_FILE
    expected = flatten(abstract)
    try:
        with safetensors.safe_open(file, "np") as content:
            _check(file, content, expected)
            found = {name: content.get_tensor(name) for name in expected}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file}: {error}") from None
    broken = [name for name, array in found.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(f"{file}: NaN or infinity in {', '.join(broken)}")
    return merge(abstract, found)


def _check(file: Path, content: Any, expected: Mapping[str, Any]) -> None:
    """Compares names, shapes and types, which stand in the file's header."""
    there = set(content.keys())
    unexpected = [f"{name} is unexpected" for name in sorted(there - expected.keys())]
    problems = []
    for name, leaf in expected.items():
        if name not in there:
            problems.append(f"{name} is missing")
            continue
        array = content.get_slice(name)
        shape, kind = list(array.get_shape()), array.get_dtype()
        if shape != list(leaf.shape):
            problems.append(f"{name} has shape {shape}, expected {list(leaf.shape)}")
        elif kind != "F32":
            problems.append(f"{name} is {kind}, expected F32")
    if unexpected or problems:
        raise InputError(f"{file}: {listed(unexpected, problems)}")
