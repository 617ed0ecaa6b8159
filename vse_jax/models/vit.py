"""SigLIP's vision transformer (Zhai et al., 2023): pictures to patch tokens."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.models.initializers import constant, normal
from vse_jax.models.transformer import Layer, layer_norm
from vse_jax.ops.blocks import run_block
from vse_jax.ops.conv import Conv


class ViT(nnx.Module):
    """Patches with learned positions, pre-norm layers, a last norm; no class token.

    Args:
        grid: patches in a row of a picture, which is square.
        patch: side of a patch, px.
        hidden, layers, heads, ffn: sizes.
        remat: keep only each layer's input for the backward pass, and compute the layer
            again there.
        dtype: of the matrix products; normalisation statistics and softmax are float32.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) pictures of another size.
    """

    def __init__(
        self,
        *,
        grid: int,
        patch: int,
        hidden: int,
        layers: int,
        heads: int,
        ffn: int,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.patches = PatchEmbedding(patch, hidden, rngs=rngs)
        start = normal(hidden**-0.5)
        self.positions = nnx.Param(start(rngs.params(), (grid * grid, hidden)))
        self.layers = nnx.List(
            Layer(hidden, heads, ffn, dtype=dtype, rngs=rngs) for _ in range(layers)
        )
        self.norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.remat = remat
        self.dtype = dtype

    def __call__(
        self, images: Float[Array, "b s s 3"], *, train: bool = False
    ) -> Float[Array, "b k h"]:
        """Returns the vectors of a picture's patches, row by row."""
        x = self.patches(images.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if x.shape[1] != len(self.positions[...]):
            raise ValueError(f"{x.shape[1]} patches, {len(self.positions[...])} places")
        x = x + jnp.asarray(self.positions[...], x.dtype)
        for layer in self.layers:
            x = run_block(layer, x, train=train, remat=self.remat)
        return self.norm(x)


class PatchEmbedding(Conv):
    """A linear map of each patch; what is left of a picture at its edges is dropped."""

    def __init__(self, patch: int, features: int, *, rngs: nnx.Rngs):
        super().__init__(3, features, patch, stride=patch, rngs=rngs)
        self.bias = nnx.Param(constant(0.0)(rngs.params(), (features,)))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b gh gw o"]:
        return super().__call__(x) + self.bias[...].astype(x.dtype)
