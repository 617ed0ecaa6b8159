"""Ranking where the right items are listed query by query (CxC, ECCV Caption)."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32

from vse_jax.base.progress import progress
from vse_jax.evaluation.retrieval import duplicate_groups

_TILE = 5_000_000  # similarities in memory at a time


def positions(
    queries: Float[np.ndarray, "queries dim"],
    items: Float[np.ndarray, "items dim"],
    positives: Sequence[Sequence[int]],
    description: str,
    within: bool = False,
) -> list[np.ndarray]:
    """Where every right item comes in the order of similarity to its query.

    Args:
        queries, items: embeddings.
        positives: for every query the indices of its right items, each once.
        description: of the work, for the progress bar.
        within: queries and items are the same set. A query's similarity to itself then
            counts as 0 (not −∞), as in the published CxC evaluation.

    Returns:
        For every query its right items' positions in ascending order, from 0. A wrong
        item that is exactly as similar as a right one comes before it.
    """
    found = []
    for row, (similarity, right) in enumerate(
        progress(
            zip(_similarities(queries, items), positives, strict=True),
            description,
            total=len(queries),
            unit="query",
        )
    ):
        if within:
            similarity[row] = 0.0
        found.append(_positions_in(similarity, np.asarray(right, np.int64)))
    return found


def _similarities(queries, items) -> Iterator[Float32[np.ndarray, " items"]]:
    """One row a query. Equal items are equally similar, however BLAS rounds."""
    first = duplicate_groups(items)
    block = max(1, _TILE // len(items))
    for start in range(0, len(queries), block):
        tile = queries[start : start + block] @ items.T
        yield from tile if first is None else tile[:, first]


def _positions_in(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    if right.size == 0:
        return right
    ascending = np.sort(similarity[right])
    # Only what reaches the least similar right item matters: a few of 25,000 as a rule.
    rivals = np.sort(similarity[similarity >= ascending[0]])
    descending = ascending[::-1]
    reached = len(rivals) - np.searchsorted(rivals, descending)
    reached_by_right = len(right) - np.searchsorted(ascending, descending)
    return np.arange(len(right)) + reached - reached_by_right
