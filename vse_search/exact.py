"""Exact search: the inner product with every vector, from the memory-mapped file."""

import functools
import threading

import numpy as np
from jaxtyping import Float32, Int64

from vse_search.engine import ALL, Filters, Hit
from vse_search.store import Snapshot, Store

_GATHERED = 4096  # vectors that are copied at a time when few pass a filter
_FILTERS = 16  # whose pictures are kept in mind


class ExactEngine:
    """Exact search in a store. Safe to share by threads.

    The vectors are those of the file, as the system keeps it in memory, for all
    processes together.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._take(store.snapshot())

    def refresh(self) -> None:
        """Takes in what the index has got since; quick where that is nothing."""
        with self._guard:
            now, _ = self._state
            if self._store.version() != now.version:
                self._take(self._store.snapshot(now))

    def _take(self, snapshot: Snapshot) -> None:
        places = functools.partial(_places, self._store, snapshot)
        self._state = snapshot, functools.lru_cache(_FILTERS)(places)

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """See `engine.Engine`."""
        snapshot, places = self._state
        allowed = None if filters == ALL else places(filters)
        ids = snapshot.ids if allowed is None else snapshot.ids[allowed]
        rows = snapshot.rows if allowed is None else snapshot.rows[allowed]
        scores = _scores(snapshot.matrix, rows, vector)
        order = best(scores, top)
        if min_score is not None:
            order = order[scores[order] >= min_score]
        found = zip(ids[order].tolist(), scores[order].tolist(), strict=True)
        return hits(self._store, snapshot, dict(found), filters)


def hits(
    store: Store, snapshot: Snapshot | None, scores: dict[int, float], filters: Filters
) -> list[Hit]:
    """The pictures with these scores, by id, in their order.

    Without those whose files were removed or changed meanwhile.
    """
    known = store.pictures(scores, filters.folder, of=snapshot)
    return [
        Hit(id, known[id].path, score, known[id])
        for id, score in scores.items()
        if id in known
    ]


def _places(
    store: Store, snapshot: Snapshot, filters: Filters
) -> Int64[np.ndarray, " found"]:
    """Where in `snapshot.ids` the pictures are that pass `filters`."""
    ids = store.matching(filters, of=snapshot)
    return np.flatnonzero(np.isin(snapshot.ids, ids, assume_unique=True))


def _scores(
    matrix: Float32[np.ndarray, "rows D"],
    rows: Int64[np.ndarray, " some"],
    vector: Float32[np.ndarray, " D"],
) -> Float32[np.ndarray, " some"]:
    """Inner products of some rows, ascending, with `vector`.

    vecdot, one thread, is as fast as memory is. A BLAS with two threads wins nothing,
    and with other work on a core its threads wait for each other, up to ten times as
    long (docs/search.md).
    """
    if len(rows) > len(matrix) // 4:
        scores = np.vecdot(matrix, vector)
        return scores if len(rows) == len(matrix) else scores[rows]
    parts = [
        np.vecdot(matrix[rows[start : start + _GATHERED]], vector)
        for start in range(0, len(rows), _GATHERED)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def best(scores: Float32[np.ndarray, " n"], top: int) -> Int64[np.ndarray, " k"]:
    """Places of the `top` highest scores, best first, equal ones in their order."""
    if top >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - top)[len(scores) - top]
    enough = np.flatnonzero(scores >= least)  # also those that are equal to the last
    return enough[np.argsort(-scores[enough], kind="stable")][:top]
