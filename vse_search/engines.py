"""Search engines: what each of them does, and the exact one."""

import functools
import importlib
import threading
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from vse_jax import require_extra
from vse_search.store import ALL, Filters, Hit, Snapshot, Store

_GATHERED = 4096  # vectors that are copied at a time when few pass a filter
_FILTERS = 16  # whose images are cached


@runtime_checkable
class Engine(Protocol):
    """Finds the images whose vectors are nearest to a query's."""

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """The `top` best images that pass `filters`, best first.

        Images with a score below `min_score` are left out.

        Raises:
            InputError: a camera or a folder that no image has.
        """
        ...

    def refresh(self) -> None:
        """Reloads the index if its version has changed."""
        ...


def make_engine(store: Store, name: str, url: str | None = None) -> Engine:
    """The engine of this name: 'exact', 'approximate' or 'postgres', which needs `url`.

    Raises:
        InputError: a package is missing, or the server does not answer.
    """
    if name == "exact":
        return ExactEngine(store)
    packages = {"approximate": ("faiss",), "postgres": ("psycopg", "pgvector")}[name]
    require_extra(f"config.search.engine: {name!r}", "search", *packages)
    module: Any = importlib.import_module(f"vse_search.{name}")
    if name == "approximate":
        return module.ApproximateEngine(store)
    return module.PostgresEngine(store, url)


class ExactEngine:
    """The inner product with every vector. Safe to share by threads.

    The vectors are those of the memory-mapped file, as the system keeps it in memory,
    for all processes together.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._take(store.snapshot())

    def refresh(self) -> None:
        with self._guard:
            now, _ = self._state
            if self._store.version() != now.version:
                self._take(self._store.snapshot(now))

    def _take(self, snapshot: Snapshot) -> None:
        @functools.lru_cache(_FILTERS)
        def passing(filters: Filters) -> Int64[np.ndarray, " found"]:
            """Where in `snapshot.ids` the images are that pass."""
            ids = self._store.matching(filters, of=snapshot)
            return np.flatnonzero(np.isin(snapshot.ids, ids, assume_unique=True))

        self._state = snapshot, passing

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """See `Engine`."""
        snapshot, passing = self._state
        places = None if filters == ALL else passing(filters)
        rows = snapshot.rows if places is None else snapshot.rows[places]
        scores = _scores(snapshot.matrix, rows, vector)
        return self._hits(snapshot, places, scores, top, min_score, filters)

    def _hits(
        self,
        snapshot: Snapshot,
        places: Int64[np.ndarray, " some"] | None,
        scores: Float32[np.ndarray, " some"],
        top: int,
        min_score: float | None,
        filters: Filters = ALL,
    ) -> list[Hit]:
        """The best of the images at these places of a snapshot; None: of all."""
        order = best(scores, top, min_score)
        ids = snapshot.ids[order if places is None else places[order]]
        found = zip(ids.tolist(), scores[order].tolist(), strict=True)
        return self._store.hits(dict(found), filters, of=snapshot)


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


def best(
    scores: Float32[np.ndarray, " n"], top: int, min_score: float | None = None
) -> Int64[np.ndarray, " k"]:
    """Places of the `top` highest scores, best first, equal ones in their order."""
    if top >= len(scores):
        order = np.argsort(-scores, kind="stable")
    else:
        least = np.partition(scores, len(scores) - top)[len(scores) - top]
        enough = np.flatnonzero(scores >= least)  # also those that are equal to it
        order = enough[np.argsort(-scores[enough], kind="stable")][:top]
    return order if min_score is None else order[scores[order] >= min_score]
