"""ResNets as feature extractors: images to grids of vectors.

Channels last.
"""

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.config import BackboneConfig
from vse_jax.models.layers import BatchNorm, Conv, relu
from vse_jax.ops import Blocks

# Initial scale of the last normalization in each residual branch. Small, so that a
# block begins close to the identity and depth does not blow up the activations of a CNN
# trained from scratch; pretrained weights replace it.
_BRANCH_SCALE = 0.2


class ResNet(nnx.Module):
    """A ResNet without its classifier.

    Args:
        cnn: the config's.
        remat: keep only each block's input for the backward pass, and compute the block
            again there.
        dtype: of the activations.
    """

    def __init__(
        self,
        cnn: BackboneConfig,
        *,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        width, frozen = cnn.width, cnn.batch_norm == "frozen"
        size, stride = (7, 2) if cnn.stem == "conv7" else (cnn.patch, cnn.patch)
        self.conv1 = Conv(3, width, size, stride=stride, rngs=rngs)
        self.bn1 = BatchNorm(width, frozen=frozen)
        self.pool = cnn.stem == "conv7"
        self.ceil_pool = cnn.block == "v1"
        self.dtype = dtype
        self.stages = len(cnn.layers)

        def make_block(in_channels, planes, stride) -> BasicBlock | Bottleneck:
            if cnn.block == "basic":
                return BasicBlock(
                    in_channels, planes, stride, frozen_norm=frozen, rngs=rngs
                )
            return Bottleneck(
                in_channels,
                planes * cnn.group_width // 64 * cnn.groups,
                4 * planes,
                stride,
                groups=cnn.groups,
                stride_first=cnn.block == "v1",
                frozen_norm=frozen,
                rngs=rngs,
            )

        channels = width
        for stage, count in enumerate(cnn.layers):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(make_block(channels, width * 2**stage, stride))
                channels = blocks[-1].channels
            setattr(self, f"layer{stage + 1}", Blocks(blocks, remat=remat))
        self.channels = channels

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b gh gw c"]:
        """Returns the last stage's feature map."""
        x = images.astype(self.dtype)
        x = relu(self.bn1.of_conv(self.conv1, x, train=train))
        if self.pool:
            x = _max_pool(x, self.ceil_pool)

        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x, train=train)
        return x


class Bottleneck(nnx.Module):
    """1×1 → 3×3 → 1×1 with a residual connection."""

    def __init__(
        self,
        in_channels,
        inner,
        channels,
        stride,
        *,
        groups,
        stride_first,
        frozen_norm,
        rngs,
    ):
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = Conv(in_channels, inner, 1, stride=first, rngs=rngs)
        self.bn1 = BatchNorm(inner, frozen=frozen_norm)
        self.conv2 = Conv(inner, inner, 3, stride=second, groups=groups, rngs=rngs)
        self.bn2 = BatchNorm(inner, frozen=frozen_norm)
        self.conv3 = Conv(inner, channels, 1, rngs=rngs)
        self.bn3 = BatchNorm(channels, frozen=frozen_norm, scale=_BRANCH_SCALE)
        self.downsample = _downsample(in_channels, channels, stride, frozen_norm, rngs)
        self.channels = channels

    def __call__(self, x, *, train):
        y = relu(self.bn1.of_conv(self.conv1, x, train=train))
        y = relu(self.bn2.of_conv(self.conv2, y, train=train))
        y = self.bn3.of_conv(self.conv3, y, train=train)
        if self.downsample is not None:
            x = self.downsample(x, train=train)
        return relu(x + y)


class BasicBlock(nnx.Module):
    """3×3 → 3×3 with a residual connection."""

    def __init__(self, in_channels, channels, stride, *, frozen_norm, rngs):
        self.conv1 = Conv(in_channels, channels, 3, stride=stride, rngs=rngs)
        self.bn1 = BatchNorm(channels, frozen=frozen_norm)
        self.conv2 = Conv(channels, channels, 3, rngs=rngs)
        self.bn2 = BatchNorm(channels, frozen=frozen_norm, scale=_BRANCH_SCALE)
        self.downsample = _downsample(in_channels, channels, stride, frozen_norm, rngs)
        self.channels = channels

    def __call__(self, x, *, train):
        y = relu(self.bn1.of_conv(self.conv1, x, train=train))
        y = self.bn2.of_conv(self.conv2, y, train=train)
        if self.downsample is not None:
            x = self.downsample(x, train=train)
        return relu(x + y)


class Downsample(nnx.Module):
    """Brings a block's input to its output's shape."""

    def __init__(self, in_channels, channels, stride, *, frozen_norm, rngs):
        self.conv = Conv(in_channels, channels, 1, stride=stride, rngs=rngs)
        self.bn = BatchNorm(channels, frozen=frozen_norm)

    def __call__(self, x, *, train):
        return self.bn.of_conv(self.conv, x, train=train)


def _downsample(in_channels, channels, stride, frozen_norm, rngs):
    if stride == 1 and in_channels == channels:
        return None
    return Downsample(in_channels, channels, stride, frozen_norm=frozen_norm, rngs=rngs)


def _max_pool(x, ceil):
    """3×3 / 2: Caffe's (no padding, size rounded up) or torchvision's (padding 1)."""
    padding = [(0, 1 - size % 2) if ceil else (1, 1) for size in x.shape[1:3]]
    return nnx.max_pool(x, (3, 3), (2, 2), padding)
