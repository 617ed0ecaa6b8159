"""Small modules and their trees."""

import numpy as np
from flax import nnx

from vse_jax.models.resnet import ResNet


def tree_of(module):
    return nnx.to_pure_dict(nnx.state(module))


def backbone(block="v1"):
    return ResNet(
        block=block,
        stem="conv7",
        patch=4,
        layers=(1, 2, 1, 1),
        width=4,
        groups=1,
        group_width=64,
        frozen_norm=True,
        dtype=np.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
