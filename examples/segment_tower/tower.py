"""An image encoder of your own: segments beside regions, each with its own layers.

A row of `<split>_ims.npy` holds the features of one image: first those of `REGIONS`
detected regions, then those of its segments (or of words that OCR read, …). Any NNX
module may stand here; it sees the arrays that data/collate.py lists.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vse_jax.config import Config
from vse_jax.models.layers import linear
from vse_jax.models.pooling import build_pool
from vse_jax.models.vse import Elements, SetEncoder

REGIONS = 36


class SegmentEncoder(SetEncoder):
    """Two linear layers, then one pooling over both kinds of elements."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        features, embed = config.image.feature_dim, config.embed_dim
        dtype = np.dtype(config.compute_dtype)
        self.region = linear(features, embed, init="xavier", dtype=dtype, rngs=rngs)
        self.segment = linear(features, embed, init="xavier", dtype=dtype, rngs=rngs)
        self.gpool = build_pool(config, "image", embed, rngs=rngs)

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns what is pooled [b, k, embed_dim], and which are real."""
        position = jnp.arange(batch["regions"].shape[1])
        mask = position < batch["region_lengths"][:, None]
        x = jnp.where(mask[..., None], batch["regions"], 0)
        is_region = (position < REGIONS)[:, None]
        return jnp.where(is_region, self.region(x), self.segment(x)), mask
