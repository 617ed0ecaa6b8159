"""A tower of one's own: segments beside regions, each kind with layers of its own.

A row of `<split>_ims.npy` holds the features of one picture: first those of `REGIONS`
detected regions, then those of its segments (or of words that OCR read, …). Any NNX
module may stand here; it sees the arrays that data/collate.py lists.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vse_jax.models.image_encoder import xavier_linear
from vse_jax.models.pooling import Members, make_pool
from vse_jax.models.set_encoder import SetEncoder

REGIONS = 36


class SegmentEncoder(SetEncoder):
    """Two linear layers, then one pooling over both kinds of members."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        features, embed = config.image.feature_dim, config.embed_dim
        dtype = np.dtype(config.compute_dtype)
        self.region = xavier_linear(features, embed, dtype=dtype, rngs=rngs)
        self.segment = xavier_linear(features, embed, dtype=dtype, rngs=rngs)
        self.gpool = make_pool(
            config.image.pool,
            features=embed,
            embed_dim=embed,
            k=config.image.pool_k,
            rngs=rngs,
        )

    def members(self, batch, *, train=False, rngs=None) -> Members:
        """Returns what is pooled [b, k, embed_dim], and which are real."""
        position = jnp.arange(batch["regions"].shape[1])
        mask = position < batch["region_lengths"][:, None]
        x = jnp.where(mask[..., None], batch["regions"], 0)
        is_region = (position < REGIONS)[:, None]
        return jnp.where(is_region, self.region(x), self.segment(x)), mask
