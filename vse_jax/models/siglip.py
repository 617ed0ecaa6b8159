"""SigLIP's two transformers (Zhai et al., 2023): images, and captions, to tokens."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vse_jax.config import ImageConfig, TextConfig, VitConfig, keeps_aspect
from vse_jax.models.layers import Conv, constant, embedding, layer_norm, normal
from vse_jax.models.transformer import MLP, Attention
from vse_jax.ops import Blocks


class ViT(nnx.Module):
    """Patches with learned positions, pre-norm layers, a last norm; no class token.

    Args:
        image: the config's: sizes; for images of any aspect, the positions are
            interpolated.
        remat: keep only each layer's input for the backward pass, and compute the layer
            again there.
        dtype: of the matrix products; normalization statistics and softmax are float32.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) images of another size.
    """

    def __init__(
        self,
        image: ImageConfig,
        *,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        vit = image.vit
        self.grid = vit.grid if keeps_aspect(image) else image.size // vit.patch
        self.patches = PatchEmbedding(vit.patch, vit.hidden, rngs=rngs)
        init = normal(vit.hidden**-0.5)
        self.positions = nnx.Param(init(rngs.params(), (self.grid**2, vit.hidden)))
        layers = (PreNormLayer(vit, dtype=dtype, rngs=rngs) for _ in range(vit.layers))
        self.layers = Blocks(layers, remat=remat)
        self.norm = layer_norm(vit.hidden, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self, images: Float[Array, "b s s 3"], *, train: bool = False
    ) -> Float[Array, "b k h"]:
        """Returns the vectors of an image's patches, row by row."""
        x = self.patches(images.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        count = len(self.positions[...])
        if x.shape[1] != count:
            raise ValueError(f"{x.shape[1]} patches, but {count} positions")
        x = x + self.positions[...].astype(x.dtype)
        return self.norm(self.layers(x, train=train))

    def any_aspect(
        self,
        patches: Float[Array, "b k p p 3"],
        lengths: Int[Array, "b 2"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b k h"], Bool[Array, "b k"]]:
        """Returns the vectors of patches, and which are real (NaFlex: SigLIP 2, 2025).

        Args:
            patches: of each image, row by row; what follows has no effect.
            lengths: how many patches are in a column and in a row of each image.
            train: has no effect, as there is no dropout.
        """
        mask = jnp.arange(patches.shape[1]) < lengths.prod(axis=1)[:, None]
        kernel = jnp.asarray(self.patches.kernel[...], self.dtype)
        x = jnp.einsum("bkhwc,hwcf->bkf", patches.astype(self.dtype), kernel)
        x = x + self.patches.bias[...].astype(self.dtype)
        shares = _position_shares(lengths, patches.shape[1], self.grid)
        positions = shares @ jnp.asarray(self.positions[...])
        x = x + positions.astype(self.dtype)
        return self.norm(self.layers(x, mask[:, None], train=train)), mask


def _position_shares(
    lengths: Int[Array, "b 2"], size: int, grid: int
) -> Float[Array, "b {size} grid_squared"]:
    """How much each learned position counts for each patch of an image.

    A square grid of positions is resized to the image's patches: bilinear, with a
    filter as wide as a shrunk place (antialiased).
    """
    places = jnp.arange(size)
    last = lengths.prod(axis=1, keepdims=True) - 1
    rows, columns = jnp.divmod(jnp.minimum(places, last), lengths[:, 1:])

    def along(index, count):
        scale = grid / count[:, None]
        centers = (index + 0.5) * scale
        apart = jnp.abs(jnp.arange(grid) + 0.5 - centers[..., None])
        shares = jnp.maximum(1 - apart / jnp.maximum(scale, 1)[..., None], 0)
        return shares / shares.sum(axis=-1, keepdims=True)

    across, down = along(columns, lengths[:, 1]), along(rows, lengths[:, 0])
    shares = down[..., :, None] * across[..., None, :]
    return shares.reshape(*shares.shape[:2], -1)


class PatchEmbedding(Conv):
    """A linear map of each patch; what is left of an image at its edges is dropped."""

    def __init__(self, patch: int, features: int, *, rngs: nnx.Rngs):
        super().__init__(3, features, patch, stride=patch, rngs=rngs)
        self.bias = nnx.Param(constant(0.0)(rngs.params(), (features,)))

    def __call__(
        self, x: Float[Array, "b h w 3"], scale: Float[Array, " o"] | None = None
    ) -> Float[Array, "b gh gw o"]:
        return super().__call__(x, scale) + self.bias[...].astype(x.dtype)


class SiglipText(nnx.Module):
    """Token and position embeddings, pre-norm layers, a last norm.

    It was trained on captions that are padded to all of its positions, and looks at the
    padding as at any other token: so does this.

    Args:
        text: the config's: sizes, and the token that fills a caption up.
        remat, dtype: as of `ViT`.

    Raises:
        ValueError: heads do not divide hidden, or (in a call) more tokens than
            positions.
    """

    def __init__(
        self,
        text: TextConfig,
        *,
        remat: bool = False,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        hidden = text.hidden
        self.word = embedding(text.vocab_size, hidden, dtype=dtype, rngs=rngs)
        self.position = embedding(text.max_positions, hidden, dtype=dtype, rngs=rngs)
        layers = (
            PreNormLayer(text, dtype=dtype, rngs=rngs) for _ in range(text.layers)
        )
        self.layers = Blocks(layers, remat=remat)
        self.norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.pad_id = text.pad_id

    def __call__(
        self,
        token_ids: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        *,
        train: bool = False,
    ) -> Float[Array, "b positions h"]:
        """Returns the last layer's vectors, of the padding, too.

        Args:
            token_ids: padded on the right with anything.
            mask: the real tokens.
            train: has no effect, as there is no dropout.
        """
        positions = self.position.num_embeddings
        missing = positions - token_ids.shape[1]
        if missing < 0:
            raise ValueError(f"{token_ids.shape[1]} tokens, but {positions} positions")
        ids = jnp.where(mask, token_ids, self.pad_id)
        ids = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=self.pad_id)
        x = self.word(ids) + self.position(jnp.arange(positions))
        return self.norm(self.layers(x, train=train))


class PreNormLayer(nnx.Module):
    """Self-attention and an MLP, each with norm before and residual after."""

    def __init__(self, sizes: VitConfig | TextConfig, *, dtype, rngs):
        hidden, ffn = sizes.hidden, sizes.ffn
        self.attention_norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.attention = Attention(hidden, sizes.heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(hidden, dtype=dtype, rngs=rngs)
        self.mlp = MLP(hidden, ffn, dtype=dtype, rngs=rngs)

    def __call__(self, x, attends=None, *, train):
        del train  # there is no dropout
        x = x + self.attention(self.attention_norm(x), attends)
        return x + self.mlp(self.mlp_norm(x))
