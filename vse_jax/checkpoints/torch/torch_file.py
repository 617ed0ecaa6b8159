"""PyTorch's files and Hugging Face's folders, read without trusting them.

PyTorch's is a pickle, and an ordinary pickle runs whatever code its author wanted. The
restricted unpickler of PyTorch builds tensors and plain containers; on top of these
only what is named here is let through. PyTorch is imported by the functions, so that
nothing else of the project needs it.
"""

import argparse
import datetime
import decimal
import pathlib
import re
import types
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from absl import logging

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.extras import require_extra
from vse_jax.base.files import AnyPath, read_object, whole_file

# Where a file of several state dicts keeps that of the model.
_MODEL_NAMES = ("state_dict", "model", "model_state_dict", "net", "network")
# What PyTorch's unpickler says, and what it means to a user.
_REASONS = {
    # PyTorch's old format keeps the source of a module's class.
    "persistent_load of storage": "holds a whole module; save its state_dict() instead",
    "TorchScript": "a TorchScript archive; save its state_dict() instead",
    # Operations that protocols 4 and 5 alone have.
    r"Unsupported operand 1(4\d|5[0-2])": "written with another pickle protocol than "
    "PyTorch's own, 2; save it with torch.save's default",
}


def _harmless() -> list[Any]:
    """Classes that hold a value and nothing else, under the names that files give them.

    Options have them: numbers and arrays of NumPy, paths (of any system), dates, sets.
    """
    allowed: list[Any] = [
        argparse.Namespace,  # the official program's options
        types.SimpleNamespace,
        np.dtype,
        np.ndarray,
        frozenset,
        range,
        slice,
        decimal.Decimal,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        datetime.timezone,
        *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUMm"},
        (lambda *_: {}, "collections.defaultdict"),
    ]
    number, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # 1 and 2
        allowed += [(number, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):  # before Python 3.13 and since
        for name in ("PurePosixPath", "PosixPath", "PureWindowsPath", "WindowsPath"):
            kind = getattr(pathlib, f"Pure{name.removeprefix('Pure')}")
            allowed.append((kind, f"{module}.{name}"))
    return allowed


class Refused:
    """Stands for a function or class that a file names: module.name."""

    def __init__(self, name: str):
        self.name = name
        self.__dict__["__new__"] = self  # what makes an instance of a class

    def __call__(self, *_: Any) -> Any:
        raise TypeError(f"GLOBAL {self.name} is called")

    def __repr__(self) -> str:
        return self.name


def read(path: Path) -> Any:
    """What a file of torch.save holds, old (non-zip) or new format, on the CPU.

    A function or class that is only named in it is a `Refused`.

    Raises:
        InputError: the file is missing, damaged, no PyTorch file, or calls anything
            but what makes tensors, containers, numbers, texts, paths and namespaces.
            Nothing in it has been run then.
    """
    torch = _import_torch(path)
    allowed, named = _harmless(), set[str]()
    while True:
        try:
            with (
                warnings.catch_warnings(action="ignore"),  # of the protocol
                torch.serialization.safe_globals(allowed),
            ):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever bytes can make an unpickler raise
            text = str(error)
            found = re.search(r"global: GLOBAL ([\w.]+) was not an allowed", text)
            if found and found[1] not in named:
                # Named only, it may be an option: another try shows if it is called.
                named.add(found[1])
                full = found[1] if "." in found[1] else f"builtins.{found[1]}"
                allowed.append((Refused(found[1]), full))
                continue
            if refused := refusal(error):
                raise InputError(f"{path}: {refused.strerror}") from None
            wanted = re.search(r"GLOBAL ([\w.]+)|but got <class '(\w+\.[\w.]+)'>", text)
            if wanted:
                raise _asks_for(str(path), wanted[1] or wanted[2]) from None
            for pattern, reason in _REASONS.items():
                if re.search(pattern, text):
                    raise InputError(f"{path}: {reason}") from None
            reason = _first_sentence(text or type(error).__name__)
            raise InputError(f"{path}: not a whole PyTorch file ({reason})") from None


def read_tensors(path: Path, *names: str) -> dict[str, Any]:
    """As `read`, for a file that holds one state dict: {key: tensor}.

    It may lie deeper in the file, {"state_dict": {key: tensor}, "epoch": 3, …}. A dict
    that holds all of `names` is what is looked for, too.

    Raises:
        InputError: it holds something else, or several state dicts of no usual name.
    """
    content = read(path)
    while True:
        if not isinstance(content, dict) or not content:
            raise InputError(f"{path}: holds no state dict (names and tensors)")
        parts = {key: part for key, part in content.items() if _holds_tensors(part)}
        if not parts or any(_is_tensor(x) for x in content.values()):
            return {str(key): tensor for key, tensor in content.items()}
        if names and content.keys() >= {*names}:
            return content
        found = next((name for name in _MODEL_NAMES if name in parts), None)
        if found is None and len(parts) == 1:
            (found,) = parts
        if found is None:
            several = ", ".join(map(str, list(parts)[:5]))
            raise InputError(f"{path}: holds several state dicts ({several}); keep one")
        content = parts[found]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _import_torch("a tensor").Tensor)


def _holds_tensors(value: Any) -> bool:
    """Whether a dict holds tensors, at any depth."""
    inside = value.values() if isinstance(value, dict) else ()
    return any(_is_tensor(x) or _holds_tensors(x) for x in inside)


def plain(value: Any) -> Any:
    """A number, text, list or dict of them that a value is exactly; else the value."""
    if isinstance(value, np.generic) or (_is_tensor(value) and value.ndim == 0):
        value = value.item()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    return value


def arrays(tensors: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict as arrays; floating-point ones as float32.

    Raises:
        InputError: a value is no dense tensor of real numbers, or tensors hold NaN or
            infinity (names `source` and all of them).
    """
    torch = _import_torch(source)
    found: dict[str, np.ndarray] = {}
    cast: Counter[str] = Counter()
    broken = []
    for key, tensor in tensors.items():
        if isinstance(tensor, Refused):
            raise _asks_for(source, tensor.name)
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{source}: {key} is no tensor ({type(tensor).__name__})")
        tensor = tensor.detach()
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_dense or tensor.is_quantized or tensor.is_complex():
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
    return {k: torch.from_numpy(np.array(x, order="C")) for k, x in arrays.items()}


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
        reason = _first_sentence(str(error))
        raise InputError(f"{path}: cannot be written ({reason})") from None


def _import_torch(wanted_by: object) -> Any:
    require_extra(wanted_by, "convert")
    import torch  # noqa: PLC0415 (only conversion installs it)

    return torch


def _asks_for(source: str, name: str) -> InputError:
    return InputError(
        f"{source}: refused: it asks for {name}, which is no part of a model and could "
        "run code; nothing of it was run"
    )


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0][:200]


# ---- Hugging Face's folders ----------------------------------------------------------


def read_folder(folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """(what the file is called, tensors) of a Hugging Face folder.

    It holds model.safetensors, or pytorch_model.bin (PyTorch then reads it), or several
    such files and their index. huggingface_hub reads these, too, but with PyTorch only.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        source, files = folder / name, [folder / name]
        if not source.is_file():
            source = folder / f"{name}.index.json"
            if not source.is_file():
                continue
            places = read_object(source).get("weight_map")
            parts = set(places.values()) if isinstance(places, dict) else set()
            beside = (isinstance(p, str) and Path(p).name == p for p in parts)
            if not parts or not all(beside):
                raise InputError(
                    f"{source}: no weight_map of tensors to files beside it"
                )
            files = [folder / part for part in sorted(parts)]
        found: dict[str, np.ndarray] = {}
        for file in files:
            if file.suffix == ".safetensors":
                found |= read_safetensors(file)
            else:
                found |= arrays(read_tensors(file), str(file))
        return str(source), found
    raise InputError(f"{folder}: no model.safetensors and no pytorch_model.bin")


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; bfloat16, which NumPy knows with JAX, as float32.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError, TypeError) as error:
        raise unreadable_safetensors(file, error) from None  # TypeError: float8
    return {
        name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x
        for name, x in found.items()
    }


def unreadable_safetensors(file: AnyPath, error: Exception) -> InputError:
    """What to raise where a safetensors file cannot be read."""
    if isinstance(error, safetensors.SafetensorError):
        what = "not a whole safetensors file; was its download cut off?"
        return InputError(f"{file}: {what} ({error})")
    return InputError(f"{file}: {error}")


def write_safetensors(file: Path, arrays: Mapping[str, Any]) -> None:
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
