"""The two-encoder model VSE∞ (Chen et al., CVPR 2021), and what an encoder is."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.base.errors import InputError

Batch = dict[str, Array]
Elements = tuple[Float[Array, "b k d"], Bool[Array, "b k"]]  # vectors, which are real


class SetEncoder(nnx.Module):
    """An encoder: a batch's images or captions become sets, `gpool` pools each set."""

    gpool: nnx.Module

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        """Returns the pooled vectors, float32; arguments: see `elements`."""
        return self.gpool(*self.elements(batch, train=train, rngs=rngs))

    def elements(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Elements:
        """Returns what is pooled, vectors [b, k, d], and which of them are real [b, k].

        Args:
            batch: the arrays that data/collate.py lists.
            train: apply dropout and size augmentation; normalize by the batch's
                statistics and update the running ones.
            rngs: streams `dropout` and `size`, for training.
        """
        raise NotImplementedError


class VSE(nnx.Module):
    """Maps images and captions into one space where the dot product is the similarity.

    All parameters are `nnx.Param`, running statistics `nnx.BatchStat`; random numbers
    come with the call (streams `dropout` and `size`), so there is no other state.

    Args:
        image, text: the encoders, called as (batch, train=…, rngs=…) → pooled vectors
            [b, d], float32.
        normalize_images, normalize_captions: divide the pooled vectors by their length.
        loss: what training descends (losses.py); its parameters belong to the model.
    """

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        *,
        normalize_images: bool = True,
        normalize_captions: bool = True,
        loss: nnx.Module | None = None,
    ):
        self.image = image
        self.text = text
        self.normalize_images = normalize_images
        self.normalize_captions = normalize_captions
        self.loss = loss

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Returns the embeddings of a batch of positives: images, captions."""
        images = self.encode_images(batch, train=train, rngs=rngs)
        return images, self.encode_captions(batch, train=train, rngs=rngs)

    def encode_images(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        """Returns image embeddings, float32, of unit length if normalized.

        Args:
            batch: 'images' [b, h, w, 3], preprocessed, or 'regions' [b, k, f] and
                'region_lengths' [b].
            train: see `SetEncoder.elements`.
            rngs: stream `size`, needed when a grid model trains.
        """
        pooled = self.image(batch, train=train, rngs=rngs)
        return l2_normalize(pooled) if self.normalize_images else pooled

    def encode_captions(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        """Returns caption embeddings, float32, normalized like the images'.

        Args:
            batch: 'token_lengths' [b], and 'token_ids' [b, t] or 'token_features'
                [b, t, h].
            train: apply dropout.
            rngs: stream `dropout`, needed when training from token ids.
        """
        pooled = self.text(batch, train=train, rngs=rngs)
        return l2_normalize(pooled) if self.normalize_captions else pooled

    def caption_features(self, batch: Batch) -> Float[Array, "b t h"]:
        """Returns what 'token_features' may hold in place of batch['token_ids']."""
        return self.text.features(batch)  # type: ignore[attr-defined]

    def image_attributions(
        self, batch: Batch, vectors: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b k"], Float[Array, " b"]]:
        """Returns each cell's or region's part of an image's similarity to a vector.

        And how far their sum is from the image's embedding, relative to its length: 0
        up to rounding where the pooling is a sum (see `attributions`).

        Raises:
            InputError: the encoder is no `SetEncoder`.
        """
        return _similarity_attributions(
            self.image, batch, vectors, self.normalize_images
        )

    def caption_attributions(
        self, batch: Batch, vectors: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b t"], Float[Array, " b"]]:
        """Returns the same of the tokens of captions."""
        return _similarity_attributions(
            self.text, batch, vectors, self.normalize_captions
        )


def l2_normalize(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Divides each row by its Euclidean norm + 1e-8 (the official constant)."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    # Without a floor the root's gradient at a zero row is infinite, and the step NaN.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-24)) + 1e-8)


def attributions(
    pool: nnx.Module, features: Float[Array, "b k d"], mask: Bool[Array, "b k"]
) -> Float[Array, "b k d"]:
    """What each element of a set adds to its pooled vector, by Euler's theorem.

    Scaling all elements scales the result of gpo, avg, max, kmax, gem, fspool and cls
    alike, so that result is Σ over the elements of value · slope: of GPO, the weight of
    the value's rank times the value. Of other poolings the sum is not the result.
    """
    features = features.astype(jnp.float32)
    pooled, pull = jax.vjp(lambda x: pool(x, mask), features)
    (slope,) = pull(jnp.ones_like(pooled))
    return jnp.where(mask[..., None], slope * features, 0)


def _similarity_attributions(encoder, batch, vectors, normalize: bool):
    if not isinstance(encoder, SetEncoder):
        raise InputError(
            f"{type(encoder).__name__} is no SetEncoder: a similarity cannot be split"
        )
    features, mask = encoder.elements(batch)
    pooled = encoder.gpool(features, mask)
    parts = attributions(encoder.gpool, features, mask)
    length = jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    missing = jnp.linalg.norm(pooled - parts.sum(axis=1), axis=-1) / length[:, 0]
    if normalize:
        parts = parts / (length[..., None] + 1e-8)
    return jnp.einsum("bkd,bd->bk", parts, vectors), missing
