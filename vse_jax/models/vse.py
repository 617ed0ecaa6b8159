"""The two-encoder model VSE∞ (Chen et al., CVPR 2021), and what an encoder is."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vse_jax.base.errors import InputError

Batch = dict[str, Array]
Elements = tuple[Float[Array, "b k d"], Bool[Array, "b k"]]  # vectors, which are real
AttributionMethod = Literal["exact", "integrated gradients"]

# Of the path from zeros, 0, to a set, 1: each interval is twice as long as the one
# before it, since attention and normalisation change fastest near 0, where a single
# Gauss-Legendre rule of more nodes misses more (tests/models/pooling_test.py).
_INTERVALS = 12
_NODES = 4


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
        dims: how many of a vector's first values a trained model gives; None: all.
        loss: what training descends (losses.py); its parameters belong to the model.
    """

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        *,
        normalize_images: bool = True,
        normalize_captions: bool = True,
        dims: int | None = None,
        loss: nnx.Module | None = None,
    ):
        self.image = image
        self.text = text
        self.normalize_images = normalize_images
        self.normalize_captions = normalize_captions
        self.dims = dims
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
        return prefix(pooled, None if train else self.dims, self.normalize_images)

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
        return prefix(pooled, None if train else self.dims, self.normalize_captions)

    def caption_features(self, batch: Batch) -> Float[Array, "b t h"]:
        """Returns what 'token_features' may hold in place of batch['token_ids']."""
        return self.text.features(batch)  # type: ignore[attr-defined]

    def image_attributions(
        self, batch: Batch, vectors: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b k"], Float[Array, " b"]]:
        """Returns each cell's or region's part of an image's similarity to a vector.

        And what the pooling gives for a set of zeros. No element causes it, so all
        share it evenly: it is in the parts. It is 0 where the pooling is a sum (see
        `attributions`).

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


def prefix(
    x: Float[Array, "b d"], dims: int | None, normalize: bool
) -> Float[Array, "b p"]:
    """The first `dims` values of each row (None: all), of unit length if wanted."""
    x = x if dims is None else x[:, :dims]
    return l2_normalize(x) if normalize else x


def l2_normalize(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Divides each row by its Euclidean norm + 1e-8 (the official constant)."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    # Without a floor the root's gradient at a zero row is infinite, and the step NaN.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-24)) + 1e-8)


def attribution_method(encoder: nnx.Module) -> AttributionMethod:
    """How a similarity is split over the elements that an encoder pools.

    Raises:
        InputError: the encoder is no `SetEncoder`.
    """
    if not isinstance(encoder, SetEncoder):
        raise InputError(
            f"{type(encoder).__name__} is no SetEncoder: a similarity cannot be split"
        )
    is_sum = getattr(encoder.gpool, "is_sum", False)
    return "exact" if is_sum else "integrated gradients"


def attributions(
    pool: nnx.Module,
    features: Float[Array, "b k d"],
    mask: Bool[Array, "b k"],
    weights: Float[Array, "b p"],
) -> Float[Array, "b k d"]:
    """What each element of a set adds to <pooled vector, weights>, by its dimensions.

    These are integrated gradients (Sundararajan et al., ICML 2017, equation 1) from a
    set of zeros: the element times the mean slope at t · set, t from 0 to 1. They sum
    to what the set adds to the result of zeros.

    Where the pooling says `is_sum`, scaling all elements scales the result alike (gpo,
    avg, max, kmax, gem, fspool, cls, last). So the slope is the same all along, the
    result of zeros is 0, and the parts are exact: of GPO, the weight of the value's
    rank times the value. For other poolings Gauss-Legendre quadrature integrates.
    """
    features = jnp.where(mask[..., None], features.astype(jnp.float32), 0)

    def slope(places, shares):
        """The slopes at places · features, summed with these shares."""
        count = len(places)
        sets = (places[:, None, None, None] * features).reshape(-1, *features.shape[1:])
        _, pull = jax.vjp(lambda x: pool(x, jnp.tile(mask, (count, 1))), sets)
        (slopes,) = pull(jnp.tile(weights, (count, 1)))
        return jnp.einsum("n,nbkd->bkd", shares, slopes.reshape(-1, *features.shape))

    if getattr(pool, "is_sum", False):
        one = jnp.ones(1)
        return features * slope(one, one)
    ends = np.append(0, 2.0 ** np.arange(1 - _INTERVALS, 1))
    halves = np.diff(ends)[:, None] / 2
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    quadrature = (ends[1:, None] + halves * (nodes - 1), halves * shares)
    total, _ = jax.lax.scan(
        lambda total, interval: (total + slope(*interval), None),
        jnp.zeros_like(features),
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), quadrature),
    )
    return features * total


def _similarity_attributions(encoder, batch, vectors, normalize: bool):
    method = attribution_method(encoder)
    features, mask = encoder.elements(batch)
    pooled = encoder.gpool(features, mask)
    weights, dims = vectors, vectors.shape[1]
    if normalize:
        length = jnp.linalg.norm(pooled[:, :dims], axis=-1, keepdims=True)
        weights = vectors / (jnp.maximum(length, 1e-12) + 1e-8)
    # The values beyond `dims` have no part in the similarity.
    weights = jnp.pad(weights, ((0, 0), (0, pooled.shape[1] - dims)))
    parts = attributions(encoder.gpool, features, mask, weights).sum(axis=-1)
    if method == "exact":
        return parts, jnp.zeros(len(parts))
    zeros = encoder.gpool(jnp.zeros_like(features), mask)
    shared = (zeros * weights).sum(axis=-1)
    each = shared / mask.sum(axis=1)
    return parts + jnp.where(mask, each[:, None], 0), shared
