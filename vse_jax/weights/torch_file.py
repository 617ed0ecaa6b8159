"""PyTorch's files, read without trusting them.

Such a file is a pickle, and an ordinary pickle runs whatever code its author wanted.
PyTorch's restricted unpickler builds tensors and plain containers; on top of these only
the types named here are let through. PyTorch is imported by the functions, so that
nothing else of the project needs it.
"""

import argparse
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.files import whole_file


def read(path: Path) -> Any:
    """Returns what a file of torch.save holds, old (non-zip) or new format, on the CPU.

    Raises:
        InputError: the file is missing, damaged, no PyTorch file, or asks for anything
            but tensors, containers, numbers, strings and argparse.Namespace. Nothing in
            it has been run then.
    """
    torch = _import_torch(path)
    scalar = np.float64(0).__reduce__()[0]
    allowed = [
        argparse.Namespace,  # the official program's options
        # A score that was a NumPy number when it was saved, under its module's names
        # before and since NumPy 2.
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float32DType,
        np.dtypes.Float64DType,
    ]
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes can make an unpickler raise
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise InputError(
                f"{path}: refused: it asks for {wanted[1]}, which is no part of a "
                "model and could run code; nothing of it was run"
            ) from None
        if refused := refusal(error):
            raise InputError(f"{path}: {refused.strerror}") from None
        reason = _first_sentence(error)
        raise InputError(f"{path}: not a whole PyTorch file ({reason})") from None


def read_tensors(path: Path) -> dict[str, Any]:
    """As `read`, for a file that holds one state dict: {key: tensor}.

    Raises:
        InputError: it holds something else.
    """
    content = read(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds no state dict (names and tensors)")
    return content


def arrays(tensors: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict as arrays; floating-point ones as float32.

    Args:
        tensors: key → tensor.
        source: the file's name, for the errors.

    Raises:
        InputError: a value is no dense tensor of real numbers, or tensors hold NaN or
            infinity (all of them are named).
    """
    torch = _import_torch(source)
    found: dict[str, np.ndarray] = {}
    cast: Counter[str] = Counter()
    broken = []
    for key, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise InputError(f"{source}: {key} is no tensor ({kind})")
        tensor = tensor.detach()
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{source}: {key} is no dense tensor of real numbers")
        if tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                cast[str(tensor.dtype).removeprefix("torch.")] += 1
                tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                broken.append(key)
        found[key] = tensor.numpy()
    if broken:
        raise InputError(f"{source}: NaN or infinity in {', '.join(broken)}")
    for dtype, count in cast.items():
        logging.info("%s: %d tensors are %s, cast to float32", source, count, dtype)
    return found


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inverse of `arrays`; the tensors own their memory."""
    torch = _import_torch("writing a PyTorch file")
    return {
        key: torch.from_numpy(np.array(array, order="C"))
        for key, array in arrays.items()
    }


def write(path: Path, content: Any) -> None:
    """Writes `content` whole or not at all, in the format that every PyTorch reads.

    Raises:
        InputError: the place cannot be written.
    """
    torch = _import_torch(path)
    try:
        with whole_file(path) as temporary:
            torch.save(content, temporary, _use_new_zipfile_serialization=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: no such folder
        raise InputError(
            f"{path}: cannot be written ({_first_sentence(error)})"
        ) from None


def _import_torch(wanted_by: object) -> Any:
    try:
        import torch  # noqa: PLC0415 (only conversion installs it)
    except ImportError:
        raise InputError(
            f"{wanted_by}: needs PyTorch, which is not installed (make setup-dev)"
        ) from None
    return torch


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:200]
