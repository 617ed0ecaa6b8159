"""The rows of a batch: a picture, a region set or a caption into its place.

A batch is a dict of NumPy arrays:
    images [B, S, S, 3] f32               (grid) or
    regions [B, K, F] f32 (zero-padded), region_lengths [B] i32
    token_ids [B, T] i32 (zero-padded)    or token_features [B, T, H] f32
    token_lengths [B] i32
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vse_jax.data.captions import (
    CaptionTokens,
    augment_words,
    bucket,
    padded_lengths,
)
from vse_jax.data.images import augment, load_image, preprocess
from vse_jax.data.layout import Split
from vse_jax.data.records.reader import RecordPictures
from vse_jax.data.regions import NpyRows, drop_regions

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]  # array → shape, dtype


def image_shapes(image: ConfigDict, count: int) -> Shapes:
    """Of the image part of a batch, from config.image."""
    if image.kind == "grid":
        return {"images": ((count, image.size, image.size, 3), np.float32)}
    return {
        "regions": ((count, image.max_regions, image.feature_dim), np.float32),
        "region_lengths": ((count,), np.int32),
    }


def caption_shapes(count: int, length: int, features: int | None = None) -> Shapes:
    """Of the caption part of a batch; `features`: size of stored token features."""
    lengths: Shapes = {"token_lengths": ((count,), np.int32)}
    if features is None:
        return {"token_ids": ((count, length), np.int32)} | lengths
    return {"token_features": ((count, length, features), np.float32)} | lengths


def shapes_of(batch: Mapping[str, Any]) -> Shapes:
    """Of the arrays of a batch."""
    return {name: (x.shape, x.dtype.type) for name, x in batch.items()}


def size_of(shapes: Shapes) -> int:
    """Bytes of a batch."""
    return sum(
        math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values()
    )


def described(shapes: Shapes) -> str:
    """'128 × 32 tokens', '128 images': what a program's batches hold."""
    for name, unit in (("token_ids", "tokens"), ("token_features", "tokens")):
        if name in shapes:
            rows, length = shapes[name][0][:2]
            return f"{rows} × {length} {unit}"
    return f"{next(iter(shapes.values()))[0][0]} images"


def _empty(shapes: Shapes) -> Batch:
    """Zeros; a set has at least one member."""
    return {
        name: (np.ones if name.endswith("_lengths") else np.zeros)(shape, dtype)
        for name, (shape, dtype) in shapes.items()
    }


class ImageRows:
    """Reads the image part of a batch, a row at a time, in the workers."""

    def __init__(self, config: ConfigDict, split: Split):
        self.image = config.image
        self.skip = config.data.on_bad_image == "skip"
        self.pictures: list[str] | RecordPictures = []
        if isinstance(split.pictures, list):  # strings travel to processes faster
            self.pictures = [os.fspath(path) for path in split.pictures]
        elif split.pictures is not None:
            self.pictures = split.pictures
        self.regions = split.regions

    def empty(self, count: int) -> Batch:
        """The image part of a batch, zeros."""
        return _empty(image_shapes(self.image, count))

    def read(
        self, batch: Batch, row: int, image: int, rng: np.random.Generator | None
    ) -> None:
        """Fills a row of `empty`; augmented when an `rng` is given.

        Raises:
            InputError: the picture is bad; the row is untouched.
        """
        c = self.image
        if self.regions is None:
            pixels = load_image(self.pictures[image])
            if rng is not None:
                pixels = augment(pixels, rng, c.crop_min, c.flip)
            batch["images"][row] = preprocess(pixels, c.size, c.pixels)
        else:
            features = self.regions[image]
            if rng is not None:
                features = drop_regions(features, rng, c.drop)
            batch["regions"][row, : len(features)] = features
            batch["region_lengths"][row] = len(features)


class CaptionRows:
    """Reads the caption part of a batch, a row at a time, in the workers."""

    def __init__(
        self,
        config: ConfigDict,
        tokens: CaptionTokens,
        token_features: NpyRows | np.ndarray | None,
    ):
        self.tokens = tokens
        self.token_features = token_features
        self.padded_lengths = padded_lengths(config)
        self.word_probability = config.text.augment

    def padded_length(self, captions: np.ndarray) -> int:
        """The bucket of the longest of `captions`, before any augmentation."""
        return bucket(int(self.tokens.lengths[captions].max()), self.padded_lengths)

    def fits(self, caption: int, length: int) -> bool:
        """Whether a caption has at most `length` tokens."""
        return bool(self.tokens.lengths[caption] <= length)

    def shapes(self, count: int, length: int) -> Shapes:
        """Of the caption part of a batch."""
        stored = self.token_features
        size = None if stored is None else stored.shape[1]
        return caption_shapes(count, length, size)

    def empty(self, count: int, length: int) -> Batch:
        """The caption part of a batch, zeros."""
        return _empty(self.shapes(count, length))

    def read(
        self, batch: Batch, row: int, caption: int, rng: np.random.Generator | None
    ) -> None:
        """Fills a row of `empty`; token ids are augmented when an `rng` is given."""
        tokens, span = self.tokens, self.tokens.span(caption)
        if self.token_features is not None:
            name, values = "token_features", self.token_features[span]
        else:
            name, values = "token_ids", tokens.ids[span]
            if rng is not None and self.word_probability > 0:
                values = augment_words(
                    values,
                    tokens.words[span],
                    rng,
                    self.word_probability,
                    tokens.mask_id,
                    tokens.vocab_size,
                )
        batch[name][row, : len(values)] = values
        batch["token_lengths"][row] = len(values)
