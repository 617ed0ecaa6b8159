"""Small modules and their trees."""

import numpy as np
from flax import nnx

from vse_jax.config import BackboneConfig
from vse_jax.models.resnet import ResNet


def tree_of(module):
    return nnx.to_pure_dict(nnx.state(module))


def backbone(block="v1"):
    cnn = BackboneConfig(block=block, layers=(1, 2, 1, 1), width=4)
    return ResNet(cnn, dtype=np.dtype("float32"), rngs=nnx.Rngs(0))
