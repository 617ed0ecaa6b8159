"""EfficientNet-Lite0 against one in PyTorch, written here, with the real weights."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from studies import efficientnet_lite as lite
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch import torch_file

# Each block's stride, by its number: that and the shapes of its weights is all that the
# peer takes from the architecture.
STRIDE_2 = (1, 3, 5, 11)


@pytest.fixture(scope="module")
def tensors():
    content = torch_file.read_tensors(lite.weights_file())
    return {name: tensor.double() for name, tensor in content.items()}


def convolve(tensors, conv, norm, x, stride=1):
    """Convolution with TensorFlow's padding, then batch normalisation."""
    weight = tensors[f"{conv}.weight"]
    size = weight.shape[-1]
    missing = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
    before, after = missing // 2, missing - missing // 2
    x = functional.pad(x, (before, after, before, after))
    groups = x.shape[1] // weight.shape[1]
    x = functional.conv2d(x, weight, stride=stride, groups=groups)
    names = ("running_mean", "running_var", "weight", "bias")
    return functional.batch_norm(
        x, *(tensors[f"{norm}.{name}"] for name in names), eps=1e-3
    )


def peer(tensors, images):
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    x = functional.relu6(convolve(tensors, "_conv_stem", "_bn0", x, 2))
    for number in range(16):
        name, y = f"_blocks.{number}.", x
        if number > 0:
            y = convolve(tensors, f"{name}_expand_conv", f"{name}_bn0", y)
            y = functional.relu6(y)
        stride = 2 if number in STRIDE_2 else 1
        y = convolve(tensors, f"{name}_depthwise_conv", f"{name}_bn1", y, stride)
        y = functional.relu6(y)
        y = convolve(tensors, f"{name}_project_conv", f"{name}_bn2", y)
        x = x + y if x.shape == y.shape else y
    x = functional.relu6(convolve(tensors, "_conv_head", "_bn1", x))
    return x.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def test_equals_pytorch_with_the_published_weights(tensors):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    images = lite.normalised(np.kron(pixels, np.ones((1, 8, 8, 1), np.uint8)))
    cells = jax.jit(lite.cells)(lite.load_network(lite.weights_file()), images)
    wanted = peer(tensors, images)
    assert cells.shape == wanted.shape == (2, lite.GRID**2, lite.CHANNELS)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(cells, wanted, rtol=0, atol=1e-5 * wanted.max())


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: holds no _"):
        lite.load_network(tmp_path / "other.pth")
