"""The two-tower VSE∞ model (Chen et al., CVPR 2021)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.base.errors import InputError
from vse_jax.models.pooling import attributions
from vse_jax.models.set_encoder import SetEncoder


class VSE(nnx.Module):
    """Maps images and captions into one space where the dot product is the similarity.

    All parameters are `nnx.Param`, running statistics `nnx.BatchStat`; random numbers
    come with the call (streams `dropout` and `size`), so there is no other state.

    Args:
        image, text: the towers, called as (batch, train=…, rngs=…) → pooled vectors
            [b, d], float32.
        normalise_images, normalise_captions: divide the pooled vectors by their length.
        loss: what training descends (losses.py); its parameters belong to the
            model.
    """

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        *,
        normalise_images: bool = True,
        normalise_captions: bool = True,
        loss: nnx.Module | None = None,
    ):
        self.image = image
        self.text = text
        self.normalise_images = normalise_images
        self.normalise_captions = normalise_captions
        self.loss = loss

    def __call__(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Returns the embeddings of a batch of pairs: images, captions."""
        images = self.encode_images(batch, train=train, rngs=rngs)
        return images, self.encode_captions(batch, train=train, rngs=rngs)

    def encode_images(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Returns image embeddings, float32, of unit length if normalised.

        Args:
            batch: 'images' [b, h, w, 3], preprocessed (grid), or 'regions' [b, k, f]
                and 'region_lengths' [b] (region).
            train: augment the set's size, normalise by batch statistics and update
                them.
            rngs: stream `size`, needed when a grid model trains.
        """
        pooled = self.image(batch, train=train, rngs=rngs)
        return l2_normalise(pooled) if self.normalise_images else pooled

    def encode_captions(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Returns caption embeddings, float32, normalised like the images'.

        Args:
            batch: 'token_lengths' [b], and 'token_ids' [b, t] or 'token_features'
                [b, t, h].
            train: apply dropout.
            rngs: stream `dropout`, needed when training from token ids.
        """
        pooled = self.text(batch, train=train, rngs=rngs)
        return l2_normalise(pooled) if self.normalise_captions else pooled

    def image_attributions(
        self, batch: dict[str, Array], vectors: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b k"], Float[Array, " b"]]:
        """Returns each cell's or region's part of an image's similarity to a vector.

        And how far their sum is from the image's embedding, relative to its length: 0
        but for rounding where the pooling is a sum (see `pooling.attributions`).
        """
        return _split(self.image, batch, vectors, self.normalise_images)

    def caption_attributions(
        self, batch: dict[str, Array], vectors: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b t"], Float[Array, " b"]]:
        """Returns the same of the tokens of captions."""
        return _split(self.text, batch, vectors, self.normalise_captions)

    def caption_features(self, batch: dict[str, Array]) -> Float[Array, "b t h"]:
        """Returns what 'token_features' may hold in place of batch['token_ids']."""
        return self.text.features(batch)  # type: ignore[attr-defined]


def _split(tower, batch, vectors, normalise: bool):
    if not isinstance(tower, SetEncoder):
        raise InputError(
            f"{type(tower).__name__} is no SetEncoder: a similarity cannot be split"
        )
    features, mask = tower.members(batch)
    pooled = tower.gpool(features, mask)
    parts = attributions(tower.gpool, features, mask)
    length = jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    missing = jnp.linalg.norm(pooled - parts.sum(axis=1), axis=-1) / length[:, 0]
    if normalise:
        parts = parts / (length[..., None] + 1e-8)
    return jnp.einsum("bkd,bd->bk", parts, vectors), missing


def l2_normalise(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Divides each row by its Euclidean norm + 1e-8 (the official constant)."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    # Without a floor the root's gradient at a zero row is infinite, and the step NaN.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-24)) + 1e-8)
