"""Cross-modal retrieval metrics of embeddings: ranks, recalls, the COCO protocols.

An image owns `captions_per_image` consecutive captions. The rank of a query is the
number of wrong items that are at least as similar to it as its most similar right item
(0 is best): a tie counts against the model, so constant embeddings earn nothing.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from vse_jax.base.errors import InputError

_TILE = 5_000_000  # similarities in memory at a time: 20 MB, which caches still help
_RECALLS = (1, 5, 10)


class Ranks(NamedTuple):
    """Rank of every query, from 0."""

    i2t: Int[np.ndarray, " images"]  # image → captions
    t2i: Int[np.ndarray, " captions"]  # caption → images


def ranks(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int,
    block: int | None = None,
) -> Ranks:
    """Ranks all queries by inner product, in both directions in one pass.

    Args:
        images, captions: embeddings, image by image in the same order.
        captions_per_image: caption c belongs to image c // captions_per_image.
        block: images per tile; memory is about block² × captions_per_image × 6 bytes.

    Raises:
        InputError: counts that do not fit, or rows that are NaN or infinite (named).
    """
    everywhere, _ = _ranks(images, captions, captions_per_image, block)
    return everywhere


def retrieval_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int,
    fold: int = 1000,
) -> dict:
    """Recalls (%), median and mean rank (from 1) of both directions, and their sum.

    Args:
        images, captions, captions_per_image: as for `ranks`.
        fold: images per fold. Five folds exactly (COCO: 5 × 1000 test images) add the
            "1K" protocol: each consecutive fold is searched on its own, then averaged.

    Returns:
        {"images", "captions", "i2t": {"r1", "r5", "r10", "medr", "meanr"}, "t2i": {…},
        "rsum"} and, with five folds, "fold5": the same, means over the folds.

    Raises:
        InputError: as `ranks`.
    """
    has_folds = len(images) == 5 * fold
    everywhere, within = _ranks(
        images, captions, captions_per_image, fold if has_folds else None
    )
    metrics = _summary(everywhere)
    if has_folds:
        size = fold * captions_per_image
        folds = [
            Ranks(
                within.i2t[k * fold : (k + 1) * fold],
                within.t2i[k * size : (k + 1) * size],
            )
            for k in range(5)
        ]
        metrics["fold5"] = _mean([_summary(one) for one in folds])
    return metrics


def ensemble(
    members: Sequence[
        tuple[Float[np.ndarray, "images _"], Float[np.ndarray, "captions _"]]
    ],
) -> tuple[Float32[np.ndarray, "images dim"], Float32[np.ndarray, "captions dim"]]:
    """One pair of embeddings whose similarities are the mean of the members'.

    A sum of inner products is the inner product of the concatenated vectors, so an
    ensemble needs no similarity matrix. The images carry the factor 1 / members.

    Raises:
        InputError: members of different splits (their counts differ).
    """
    counts = {(len(images), len(captions)) for images, captions in members}
    if len(counts) > 1:
        listed = ", ".join(f"{n} images / {c} captions" for n, c in sorted(counts))
        raise InputError(f"ensemble: members of different splits ({listed})")
    share = np.float32(1 / len(members))
    return (
        np.concatenate([images * share for images, _ in members], axis=1),
        np.concatenate([captions for _, captions in members], axis=1),
    )


def recall(found: Int[np.ndarray, " queries"], k: int) -> float:
    """Recall at k: the share of queries, in %, whose rank (from 0) is below k."""
    return 100.0 * int(np.count_nonzero(found < k)) / len(found)


def duplicate_groups(
    rows: Float[np.ndarray, "rows dim"],
) -> Int[np.ndarray, " rows"] | None:
    """For every row the number of the first row equal to it; None when all differ."""
    # A 64-bit hash: two different rows of a million collide once in 10^7 runs.
    seen: dict[int, int] = {}
    first = [seen.setdefault(hash(row.tobytes()), k) for k, row in enumerate(rows)]
    return np.array(first) if len(seen) < len(rows) else None


def check_finite(what: str, rows: Float[np.ndarray, "rows dim"]) -> None:
    """Raises InputError that names the rows of `what` that are NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        named = ", ".join(map(str, bad[:5])) + (" …" if bad.size > 5 else "")
        raise InputError(
            f"{what}: {bad.size} of {len(rows)} embeddings are NaN or infinite "
            f"(rows from 0: {named})"
        )


@dataclass(frozen=True)
class _Block:
    """Consecutive images, their captions, and the targets of both.

    A wrong item ranks before the right ones if it reaches the query's target.

    BLAS may round one and the same inner product differently at two places of a matrix,
    which would break ties at random. Rows that are equal (the same sentence written for
    two pictures; a collapsed model) are therefore recognised by their bytes: they have
    the same label. Where all rows of the split differ, there are no labels.
    """

    rows: slice  # of the images
    columns: slice  # of the captions
    i2t: Float32[np.ndarray, " m"]  # similarity of each image's best right caption
    t2i: Float32[np.ndarray, " n"]  # similarity of each caption's image
    image_labels: Int[np.ndarray, " m"] | None
    caption_labels: Int[np.ndarray, " n"] | None
    best_labels: Int[np.ndarray, " m"] | None  # of each image's best right caption


def _ranks(images, captions, captions_per_image, block) -> tuple[Ranks, Ranks]:
    """Ranks among all items, and among the items of the query's own block."""
    n, per = len(images), captions_per_image
    if n == 0 or n * per != len(captions):
        raise InputError(
            f"embeddings: {n} images and {len(captions)} captions do not fit "
            f"{per} captions per image"
        )
    check_finite("images", images)
    check_finite("captions", captions)
    images = np.ascontiguousarray(images, np.float32)
    captions = np.ascontiguousarray(captions, np.float32)
    labels = duplicate_groups(images), duplicate_groups(captions)

    # The diagonal tiles hold the similarities of the right items, to which all others
    # are compared, so they come first. What they count is the rank within the block.
    within = Ranks(np.zeros(n, np.int64), np.zeros(n * per, np.int64))
    blocks = []
    for rows in _slices(n, block or max(1, math.isqrt(_TILE // per))):
        columns = slice(rows.start * per, rows.stop * per)
        similarity = _similarity(images, captions, rows, columns)
        here = _block(similarity, rows, columns, *labels)
        by_image, by_caption = _reached(similarity, here, here)
        _own(by_image, per)[...] = False
        _own(by_caption, per)[...] = False
        within.i2t[rows] = _count_rows(by_image)
        within.t2i[columns] = _count_columns(by_caption)
        blocks.append(here)

    everywhere = Ranks(within.i2t.copy(), within.t2i.copy())
    for one, other in itertools.permutations(blocks, 2):
        similarity = _similarity(images, captions, one.rows, other.columns)
        by_image, by_caption = _reached(similarity, one, other)
        everywhere.i2t[one.rows] += _count_rows(by_image)
        everywhere.t2i[other.columns] += _count_columns(by_caption)
    return everywhere, within


def _cpu() -> jax.Device | None:
    """Where similarities are computed: they are compared on the CPU.

    None, the default device, where JAX was told to leave out CPUs.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _similarity(images, captions, rows: slice, columns: slice) -> np.ndarray:
    factors = jax.device_put((images[rows], captions[columns]), _cpu())
    return jax.device_get(_product(*factors))


@jax.jit
def _product(
    images: Float32[Array, "m dim"], captions: Float32[Array, "n dim"]
) -> Float32[Array, "m n"]:
    """NumPy's takes twice as long on processors that its BLAS does not know."""
    return jnp.matmul(images, captions.T, precision="highest")


def _block(
    similarity: Float32[np.ndarray, "m n"],
    rows: slice,
    columns: slice,
    image_labels: Int[np.ndarray, " images"] | None,
    caption_labels: Int[np.ndarray, " captions"] | None,
) -> _Block:
    """The block whose diagonal tile is `similarity`; the labels are the split's."""
    own = _own(similarity, similarity.shape[1] // len(similarity))
    best_labels = None
    if caption_labels is not None:
        caption_labels = caption_labels[columns]
        best = own.argmax(axis=1)[:, None]
        of_images = caption_labels.reshape(own.shape)
        best_labels = np.take_along_axis(of_images, best, axis=1)[:, 0]
    return _Block(
        rows,
        columns,
        i2t=own.max(axis=1),
        t2i=own.ravel(),
        image_labels=None if image_labels is None else image_labels[rows],
        caption_labels=caption_labels,
        best_labels=best_labels,
    )


def _reached(
    similarity: Float32[np.ndarray, "m n"], one: _Block, other: _Block
) -> tuple[Bool[np.ndarray, "m n"], Bool[np.ndarray, "m n"]]:
    """Which wrong items of a tile rank before the right ones.

    Args:
        similarity: of the images of `one` and the captions of `other`.

    Returns:
        Where the caption reaches the image's target, and where the image reaches the
        caption's.
    """
    by_image = similarity >= one.i2t[:, None]
    by_caption = similarity >= other.t2i
    if one.best_labels is not None:
        by_image |= other.caption_labels == one.best_labels[:, None]
    if one.image_labels is not None and other.image_labels is not None:
        right = np.repeat(other.image_labels, len(other.t2i) // len(other.i2t))
        by_caption |= one.image_labels[:, None] == right
    return by_image, by_caption


def _own(tile: np.ndarray, per: int) -> np.ndarray:
    """View [images, per] of a diagonal tile: every image with its own captions."""
    blocks = tile.reshape(len(tile), len(tile), per)
    return np.einsum("iip->ip", blocks)


def _count_rows(mask: Bool[np.ndarray, "m n"]) -> np.ndarray:
    # Row by row, NumPy counts with SIMD; over an axis it first widens to int64.
    return np.fromiter(map(np.count_nonzero, mask), np.int64, len(mask))


def _count_columns(mask: Bool[np.ndarray, "m n"]) -> np.ndarray:
    return mask.sum(axis=0, dtype=np.int32)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _summary(found: Ranks) -> dict:
    i2t, t2i = _direction(found.i2t), _direction(found.t2i)
    return {
        "images": len(found.i2t),
        "captions": len(found.t2i),
        "i2t": i2t,
        "t2i": t2i,
        "rsum": sum(way[f"r{k}"] for way in (i2t, t2i) for k in _RECALLS),
    }


def _direction(found: Int[np.ndarray, " queries"]) -> dict[str, float]:
    result = {f"r{k}": recall(found, k) for k in _RECALLS}
    result["medr"] = float(np.floor(np.median(found))) + 1
    result["meanr"] = float(found.mean()) + 1
    return result


def _mean(trees: list[dict]) -> dict:
    """Mean of every number over dicts of the same structure; counts stay whole."""
    result: dict = {}
    for key, value in trees[0].items():
        values = [tree[key] for tree in trees]
        if isinstance(value, dict):
            result[key] = _mean(values)
        else:
            result[key] = value if isinstance(value, int) else float(np.mean(values))
    return result
