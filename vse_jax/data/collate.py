"""Collates a batch: images, region sets and captions as the rows of its arrays.

A batch is a dict of NumPy arrays:
    images [B, S, S, 3] f32               (grid) or
    patches [B, K, P, P, 3] f32 (zero-padded), grid_lengths [B, 2] i32: in a column and
                                          in a row (NaFlex) or
    regions [B, K, F] f32 (zero-padded), region_lengths [B] i32
    token_ids [B, T] i32 (zero-padded)    or token_features [B, T, H] f32
    token_lengths [B] i32
    packed_indices [R, 128] i32             (where BERT's tokens are packed)
    image_ids [B] i32                     (training: the number of each row's image)
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from vse_jax.config import Config, ImageConfig, keeps_aspect, takes_regions
from vse_jax.data.dataset import Split
from vse_jax.data.images import (
    augment,
    load_image,
    patches_of_aspect,
    preprocess_to,
)
from vse_jax.data.records import RecordImages
from vse_jax.data.regions import NpyRows, drop_regions
from vse_jax.data.tokenizers import (
    CaptionTokens,
    augment_words,
    bucket,
    padded_lengths,
)

Batch = dict[str, np.ndarray]
_ROW = 128  # tokens of a packed row: the lanes of a TPU
# What a batch's captions are padded to, and its packed rows; None: it is not packed.
Bucket = tuple[int, int | None]
Shapes = dict[str, tuple[tuple[int, ...], type]]  # array → shape, dtype


def image_shapes(image: ImageConfig, count: int) -> Shapes:
    """Of the image part of a batch, from config.image."""
    if takes_regions(image):
        return {
            "regions": ((count, image.max_regions, image.feature_dim), np.float32),
            "region_lengths": ((count,), np.int32),
        }
    if keeps_aspect(image):
        side = image.vit.patch
        assert image.vit.max_patches is not None
        patches = (count, image.vit.max_patches, side, side, 3)
        return {
            "patches": (patches, np.float32),
            "grid_lengths": ((count, 2), np.int32),
        }
    return {"images": ((count, image.size, image.size, 3), np.float32)}


def prepare_image(
    pixels: UInt8[np.ndarray, "height width 3"], image: ImageConfig
) -> Float32[np.ndarray, "rows columns 3"]:
    """An image resized and normalised as config.image says, for `put_image`."""
    rows = columns = image.size
    if keeps_aspect(image):
        assert image.vit.max_patches is not None
        patch, most = image.vit.patch, image.vit.max_patches
        height, width = pixels.shape[:2]
        grid = patches_of_aspect(height, width, patch, most)
        rows, columns = patch * grid[0], patch * grid[1]
    return preprocess_to(pixels, rows, columns, image.pixels, image.resample)


def put_image(
    batch: Batch,
    row: int,
    prepared: Float32[np.ndarray, "rows columns 3"],
    image: ImageConfig,
) -> None:
    """Fills a row of a batch with what `prepare_image` gave."""
    if not keeps_aspect(image):
        batch["images"][row] = prepared
        return
    side = image.vit.patch
    rows, columns = prepared.shape[0] // side, prepared.shape[1] // side
    patches = prepared.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    batch["patches"][row, : rows * columns] = patches.reshape(-1, side, side, 3)
    batch["grid_lengths"][row] = rows, columns


def pair_shapes(image: ImageConfig, count: int) -> Shapes:
    """Of a training batch without its captions."""
    return image_shapes(image, count) | {"image_ids": ((count,), np.int32)}


def caption_shapes(
    count: int, length: int, features: int | None = None, packed: int | None = None
) -> Shapes:
    """Of the caption part of a batch, `count` captions padded to `length`.

    features: size of stored token features; None: token ids.
    packed: rows of packed tokens; None: they are not packed.
    """
    shapes: Shapes = {"token_lengths": ((count,), np.int32)}
    if features is not None:
        shapes["token_features"] = ((count, length, features), np.float32)
    else:
        shapes["token_ids"] = ((count, length), np.int32)
    if packed is not None:
        shapes["packed_indices"] = ((packed, _ROW), np.int32)
    return shapes


def packing_devices(config: Config, devices: int) -> int:
    """How many devices pack the tokens of their captions, for BERT to skip padding.

    All of them or none (0). Microbatches would need indices of their own. On several
    devices every one needs rows for its tokens, which a longer caption that replaces a
    bad image's may take away.
    """
    computed = config.text.kind == "bert" and not config.text.cache_features
    fixed = devices == 1 or config.data.on_bad_image == "error"
    return devices if computed and fixed and config.microbatches == 1 else 0


def packed_rows(
    lengths: Int[np.ndarray, " b"], padded: int, devices: int
) -> int | None:
    """The rows that the tokens of a batch of captions are packed into.

    Equally many for each of the devices that pack, as the fullest one needs; a multiple
    of one for 64 captions, so that few programs are compiled. None: they would be no
    smaller than captions padded to `padded`, or a caption does not fit.
    """
    own = len(lengths) // devices
    if padded > _ROW:
        return None
    rows = max(_rows_and_starts(each)[0][-1] + 1 for each in lengths.reshape(-1, own))
    step = max(own // 64, 1)
    rows = -(-rows // step) * step
    return rows * devices if rows * _ROW < own * padded else None


def _rows_and_starts(lengths: Int[np.ndarray, " b"]) -> tuple[list[int], list[int]]:
    """Where each caption lies: a row is full when the next one does not fit.

    (So shorter captions never need more rows, which fuller packings do not promise.)
    """
    rows, starts = [], []
    row = filled = 0
    for length in lengths.tolist():
        if filled + length > _ROW:
            row, filled = row + 1, 0
        rows.append(row)
        starts.append(filled)
        filled += length
    return rows, starts


def packed_indices(
    lengths: Int[np.ndarray, " b"], padded: int, devices: int, rows: int
) -> Int32[np.ndarray, "{rows} 128"] | None:
    """The places of the tokens of captions, as ops/packing.py takes them.

    Args:
        lengths: of the captions; each device has equally many of them.
        padded: what they are padded to.
        devices: that pack.
        rows: of all of them. None is returned where they are too few.
    """
    own = len(lengths) // devices
    indices = np.full((devices, rows // devices, _ROW), own * padded, np.int32)
    for each, places in zip(lengths.reshape(devices, own), indices, strict=True):
        found = zip(*_rows_and_starts(each), each.tolist(), strict=True)
        for caption, (row, start, length) in enumerate(found):
            if row >= len(places):
                return None
            first = caption * padded
            places[row, start : start + length] = np.arange(first, first + length)
    return indices.reshape(rows, _ROW)


def shapes_of(batch: Mapping[str, Any]) -> Shapes:
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
            indices = shapes.get("packed_indices")
            packed = " in {} rows of {}".format(*indices[0]) if indices else ""
            return f"{rows} × {length} {unit}{packed}"
    return f"{next(iter(shapes.values()))[0][0]} images"


def empty_batch(shapes: Shapes) -> Batch:
    """A batch of zeros; a set has at least one element."""
    return {
        name: (np.ones if name.endswith("_lengths") else np.zeros)(shape, dtype)
        for name, (shape, dtype) in shapes.items()
    }


class ImageCollator:
    """Reads the image part of a batch, a row at a time, in the workers."""

    def __init__(self, config: Config, split: Split):
        self.image = config.image
        self.skip = config.data.on_bad_image == "skip"
        self.images: list[str] | RecordImages | None = None
        if isinstance(split.images, list):  # strings travel to processes faster
            self.images = [os.fspath(path) for path in split.images]
        else:
            self.images = split.images
        self.regions = split.regions

    def empty(self, count: int) -> Batch:
        return empty_batch(image_shapes(self.image, count))

    def read(
        self, batch: Batch, row: int, image: int, rng: np.random.Generator | None
    ) -> None:
        """Fills a row of `empty`; augmented when an `rng` is given.

        Raises:
            InputError: the image is bad; the row is untouched.
        """
        c = self.image
        if self.regions is None:
            assert self.images is not None
            rgb = load_image(self.images[image])
            if rng is not None:
                rgb = augment(rgb, rng, c.crop_min, c.flip)
            put_image(batch, row, prepare_image(rgb, c), c)
        else:
            features = self.regions[image]
            if rng is not None:
                features = drop_regions(features, rng, c.drop)
            batch["regions"][row, : len(features)] = features
            batch["region_lengths"][row] = len(features)


class CaptionCollator:
    """Reads the caption part of a batch, a row at a time, in the workers."""

    def __init__(
        self,
        config: Config,
        tokens: CaptionTokens,
        token_features: NpyRows | np.ndarray | None,
        *,
        pack: int = 0,
    ):
        """pack: devices of which each packs the tokens of its share of a batch (see
        `packing_devices`)."""
        self.pack = pack
        self.tokens = tokens
        self.token_features = token_features
        self.padded_lengths = padded_lengths(config)
        self.word_probability = config.text.augment

    def bucket_of(self, captions: np.ndarray) -> Bucket:
        """The bucket of a training batch of `captions`, before any augmentation."""
        lengths = self.tokens.lengths[captions]
        length = bucket(int(lengths.max()), self.padded_lengths)
        return length, packed_rows(lengths, length, self.pack) if self.pack else None

    def fits(self, caption: int, length: int) -> bool:
        return bool(self.tokens.lengths[caption] <= length)

    def shapes(self, count: int, length: int, packed: int | None = None) -> Shapes:
        """Of the caption part of a batch in the bucket (length, packed)."""
        stored = self.token_features
        size = None if stored is None else stored.shape[1]
        return caption_shapes(count, length, size, packed)

    def empty(self, count: int, length: int) -> Batch:
        return empty_batch(self.shapes(count, length))

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

    def set_packed_indices(self, batch: Batch, packed: int | None, count: int) -> None:
        """Adds 'packed_indices' to a batch, or a process's share, whose rows are read.

        Unless they are too few: captions that replace others may be longer.

        Args:
            batch: with all else.
            packed: rows of the global batch's; None: it is not packed.
            count: rows of the global batch.
        """
        if packed is not None:
            rows, length = batch["token_ids"].shape
            devices, packed = self.pack * rows // count, packed * rows // count
            indices = packed_indices(batch["token_lengths"], length, devices, packed)
            if indices is not None:
                batch["packed_indices"] = indices
