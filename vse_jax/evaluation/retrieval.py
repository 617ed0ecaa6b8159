"""Ranks and recalls of image-caption retrieval, and the COCO protocols.

What everything here counts:

- A query's positives are the items that belong to it: an image's own captions, one or
  many, or the items that an evaluation set lists. All other items are its negatives.
- The rank of a positive, from 0, is the number of items that come before it: negatives
  at least as similar to the query, and more similar positives. So a tie counts against
  the model, and constant embeddings earn nothing.
- Duplicates, embeddings of the same bytes, always tie. Matrix products may round one
  and the same inner product differently at two places, which would break such ties at
  random.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from vse_jax.base.errors import InputError
from vse_jax.base.progress import progress
from vse_jax.data.dataset import caption_offsets

_TILE = 5_000_000  # similarities in memory at a time: 20 MB, which caches still help
_RECALLS = (1, 5, 10)


class Ranks(NamedTuple):
    """Rank of every query's best positive, from 0."""

    i2t: Int[np.ndarray, " images"]  # image → captions
    t2i: Int[np.ndarray, " captions"]  # caption → images


def retrieval_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    fold: int = 1000,
) -> dict:
    """Recalls (%), median and mean rank (from 1) of both directions, and their sum.

    Args:
        images, captions, captions_per_image: as for `ranks`.
        fold: images per fold. Five folds exactly (COCO: 5 × 1000 test images) add the
            "1K" protocol: each consecutive fold is searched on its own, then averaged.

    Returns:
        {"images", "captions", "i2t": {"r1", "r5", "r10", "medr", "meanr"}, "t2i": {…},
        "rsum"} and, with five folds, "fold5": the same, means over the folds (the
        number of captions rounded down).

    Raises:
        InputError: as `ranks`.
    """

    def summary(found: Ranks) -> dict:
        ways = {}
        for way, ranked in found._asdict().items():
            ways[way] = {f"r{k}": recall(ranked, k) for k in _RECALLS} | {
                "medr": float(np.floor(np.median(ranked))) + 1,
                "meanr": float(ranked.mean()) + 1,
            }
        counts = {"images": len(found.i2t), "captions": len(found.t2i)}
        rsum = sum(way[f"r{k}"] for way in ways.values() for k in _RECALLS)
        return counts | ways | {"rsum": rsum}

    has_folds = len(images) == 5 * fold
    everywhere, within = ranks(
        images, captions, captions_per_image, fold if has_folds else None
    )
    metrics = summary(everywhere)
    if has_folds:
        counts = np.broadcast_to(captions_per_image, len(images))
        i2t = np.split(within.i2t, 5)
        t2i = np.split(within.t2i, caption_offsets(counts)[fold:-1:fold])
        folds = [summary(Ranks(*one)) for one in zip(i2t, t2i, strict=True)]
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *folds)
        sizes = {"images": fold, "captions": len(captions) // 5}
        metrics["fold5"] = sizes | {key: mean[key] for key in ("i2t", "t2i", "rsum")}
    return metrics


def recall(ranked: Int[np.ndarray, " queries"], k: int) -> float:
    """Recall at k: the share of queries, in %, whose rank (from 0) is below k."""
    return 100.0 * int(np.count_nonzero(ranked < k)) / len(ranked)


def ranks(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    block: int | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks all queries by inner product, in both directions in one pass.

    Args:
        images, captions: embeddings, image by image in the same order.
        captions_per_image: of every image, or of each; at least one.
        block: images per tile; memory is about 6 bytes for each of its similarities.

    Returns:
        The ranks among all items, and those among the items of the query's own block.

    Raises:
        InputError: counts that do not fit, or rows that are NaN or infinite (named).
    """
    n, total = len(images), len(captions)
    counts = np.broadcast_to(captions_per_image, n)
    offsets = caption_offsets(counts)
    if n == 0 or counts.min() < 1 or offsets[-1] != total:
        raise InputError(
            f"embeddings: {n} images and {total} captions do not fit "
            f"{captions_per_image} captions per image"
        )
    check_finite("images", images)
    check_finite("captions", captions)
    images = np.ascontiguousarray(images, np.float32)
    captions = np.ascontiguousarray(captions, np.float32)
    image_groups, caption_groups = duplicate_groups(images), duplicate_groups(captions)
    owners = np.repeat(np.arange(n), counts)  # the image of each caption
    # To be reached by a negative: the similarities of each image's best positive, which
    # is caption `best`, and of each caption's only one.
    image_targets, best = np.empty(n, np.float32), np.empty(n, np.int64)
    caption_targets = np.empty(total, np.float32)
    i2t, t2i = np.zeros(n, np.int64), np.zeros(total, np.int64)

    def count(rows: slice, others: slice) -> None:
        """Counts the negatives of a tile: images `rows`, captions of `others`."""
        columns = slice(offsets[others.start], offsets[others.stop])
        similarity = _similarity(images[rows], captions[columns])
        # In a diagonal tile, every caption's own image.
        positives = owners[columns] - rows.start, np.arange(similarity.shape[1])
        if rows == others:
            own, first = similarity[positives], offsets[rows] - columns.start
            caption_targets[columns] = own
            image_targets[rows] = np.maximum.reduceat(own, first)
            is_best = own == image_targets[owners[columns]]
            numbers = np.where(is_best, np.arange(columns.start, columns.stop), total)
            best[rows] = np.minimum.reduceat(numbers, first)
        by_image = similarity >= image_targets[rows, None]
        by_caption = similarity >= caption_targets[columns]
        if caption_groups is not None:
            by_image |= caption_groups[columns] == caption_groups[best[rows], None]
        if image_groups is not None:
            of_captions = image_groups[owners[columns]]
            by_caption |= image_groups[rows, None] == of_captions
        if rows == others:
            by_image[positives] = by_caption[positives] = False
        # Row by row, NumPy counts with SIMD; over an axis it first widens to int64.
        i2t[rows] += np.fromiter(map(np.count_nonzero, by_image), np.int64)
        t2i[columns] += by_caption.sum(axis=0, dtype=np.int32)

    size = block or max(1, math.isqrt(_TILE * n // total))
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for rows in blocks:  # first: these tiles hold the positives
        count(rows, rows)
    within = Ranks(i2t.copy(), t2i.copy())
    for rows, others in itertools.permutations(blocks, 2):
        count(rows, others)
    return Ranks(i2t, t2i), within


def positive_ranks(
    queries: Float[np.ndarray, "queries dim"],
    items: Float[np.ndarray, "items dim"],
    positives: Sequence[Sequence[int]],
    description: str,
    same_set: bool = False,
) -> list[tuple[Int[np.ndarray, " positives"], Int[np.ndarray, " positives"]]]:
    """Ranks of all positives of each query, where these are listed query by query.

    Args:
        queries, items: embeddings.
        positives: for every query the indices of its positives, each once.
        description: of the work, for the progress bar.
        same_set: queries and items are the same. A query's similarity to itself then
            counts as 0 (not −∞), as in the published CxC evaluation.

    Returns:
        For every query the ranks of its positives, ascending, and the places in
        `positives` that they belong to; of equally similar ones the first listed first.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    items = np.ascontiguousarray(items, np.float32)
    groups = duplicate_groups(items)
    block = max(1, _TILE // len(items))

    def similarities() -> Iterator[Float32[np.ndarray, " items"]]:
        for start in range(0, len(queries), block):
            tile = _similarity(queries[start : start + block], items)
            yield from tile if groups is None else tile[:, groups]

    found = []
    rows = zip(similarities(), positives, strict=True)
    for query, (similarity, indices) in enumerate(
        progress(rows, description, total=len(queries), unit="query")
    ):
        own = np.asarray(indices, np.int64)
        if not own.size:
            found.append((own, own))
            continue
        if same_set:
            similarity = similarity.copy()
            similarity[query] = 0.0
        order = np.argsort(-similarity[own], kind="stable")
        descending = similarity[own][order]
        ascending = descending[::-1]
        # Only what reaches the least similar positive matters: few items as a rule.
        rivals = np.sort(similarity[similarity >= ascending[0]])
        reached = len(rivals) - np.searchsorted(rivals, descending)
        by_positives = len(own) - np.searchsorted(ascending, descending)
        found.append((np.arange(len(own)) + reached - by_positives, order))
    return found


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


def _similarity(
    queries: Float32[np.ndarray, "m dim"], items: Float32[np.ndarray, "n dim"]
) -> Float32[np.ndarray, "m n"]:
    """All inner products, on the CPU, which compares them.

    XLA's product takes half the time of NumPy's on processors that its BLAS does not
    know.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to leave out CPUs
        device = None
    return jax.device_get(_product(*jax.device_put((queries, items), device)))


@jax.jit
def _product(
    queries: Float32[Array, "m dim"], items: Float32[Array, "n dim"]
) -> Float32[Array, "m n"]:
    return jnp.matmul(queries, items.T, precision="highest")
