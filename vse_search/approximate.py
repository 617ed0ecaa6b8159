"""Approximate search for millions of vectors: only a part of them is looked at.

faiss groups the vectors around centers (IVF) and keeps a byte of each value. A query
meets the groups of its nearest centers; the best of what it finds there is scored again
by the vectors themselves. The groups are a cache, <index>/approximate-….faiss: it may
be removed at any time and is made again from the vectors.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from absl import logging
from jaxtyping import Float32, Int64

from vse_jax import progress, whole_file
from vse_search.engines import ExactEngine
from vse_search.store import ALL, Filters, Hit, Snapshot, Store

_LEAST = 20_000  # images; among fewer, exact search takes milliseconds
_STALE = 1 / 8  # of the grouped vectors: so many may be gone, or be new
_PROBED = 48  # groups that a query meets
_RESCORED = 200  # vectors that are scored exactly, at least
_EACH = 40  # vectors for each centre that is to be found
_CHUNK = 16_384  # vectors that are added at a time


class _State(NamedTuple):
    """Groups, and the index as of one version."""

    snapshot: Snapshot
    groups: Any  # of images with ids up to `last`
    last: int


class ApproximateEngine(ExactEngine):
    """Approximate search in a store; exact with filters and among few images.

    New images are searched exactly, and those that are gone passed over, until they are
    an eighth of all; then new groups are made, which takes minutes for a million
    vectors.
    """

    _groups: _State | None = None  # None: there are few images

    def _take(self, snapshot: Snapshot) -> None:
        old = self._groups
        if len(snapshot.ids) < _LEAST:
            self._groups = None
        elif old and old.snapshot.uid == snapshot.uid and _is_fresh(snapshot, old):
            self._groups = old._replace(snapshot=snapshot)
        else:
            self._groups = _cached(self._store, snapshot)
        super()._take(snapshot)

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """See `engines.Engine`."""
        state = self._groups
        if state is None or filters != ALL or top > len(state.snapshot.ids) // 100:
            return super().search(vector, top=top, filters=filters, min_score=min_score)
        snapshot = state.snapshot
        places = _candidates(state, vector, max(_RESCORED, 2 * top))
        scores = np.vecdot(snapshot.matrix[snapshot.rows[places]], vector)
        return self._hits(snapshot, places, scores, top, min_score)


def _candidates(
    state: _State, vector: Float32[np.ndarray, " D"], count: int
) -> Int64[np.ndarray, " some"]:
    """Where in the snapshot the images are that are worth a second look."""
    ids = state.snapshot.ids
    _, found = state.groups.search(vector[None], count)
    places = np.searchsorted(ids, found[0])
    places = places[ids[np.minimum(places, len(ids) - 1)] == found[0]]  # still there
    new = np.arange(np.searchsorted(ids, state.last, "right"), len(ids))
    return np.concatenate([places, new])


def _is_fresh(snapshot: Snapshot, state: _State) -> bool:
    grouped = state.groups.ntotal
    kept = int(np.searchsorted(snapshot.ids, state.last, "right"))
    return (grouped - kept) + (len(snapshot.ids) - kept) <= _STALE * grouped


def _cached(store: Store, snapshot: Snapshot) -> _State:
    """With the groups of the cache, where they are fresh, or with new ones."""
    name = f"approximate-{snapshot.uid}"
    for path in store.index.glob(f"{name}-*.faiss"):
        try:
            groups: Any = faiss.read_index(str(path))
        except RuntimeError as error:  # damaged: it is only a cache
            logging.warning("%s: %s", path, error)
            continue
        groups.nprobe = _PROBED
        state = _State(snapshot, groups, int(path.stem.rpartition("-")[2]))
        if _is_fresh(snapshot, state):
            return state
    groups, last = _grouped(snapshot), int(snapshot.ids[-1])
    _write(groups, store.index / f"{name}-{last}.faiss")
    groups.nprobe = _PROBED
    return _State(snapshot, groups, last)


def _grouped(snapshot: Snapshot) -> Any:
    """The vectors in groups."""
    count, dim = len(snapshot.ids), snapshot.matrix.shape[1]
    centers = int(2 * math.sqrt(count))
    logging.info("approximate search: %d vectors, %d groups", count, centers)
    groups = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim),
        dim,
        centers,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    groups.cp.niter, groups.cp.min_points_per_centroid = 6, 1
    sample = np.random.default_rng(0).permutation(count)[: _EACH * centers]
    groups.train(snapshot.matrix[snapshot.rows[np.sort(sample)]])
    for start in progress(range(0, count, _CHUNK), "group", unit="chunks"):
        some = slice(start, start + _CHUNK)
        vectors = snapshot.matrix[snapshot.rows[some]]
        groups.add_with_ids(vectors, snapshot.ids[some])
    return groups


def _write(groups: Any, path: Path) -> None:
    """Whole or not at all; then removes other caches. A full disk costs the cache."""
    try:
        with whole_file(path) as temporary:
            faiss.write_index(groups, str(temporary))
    except (RuntimeError, OSError) as error:
        logging.warning("%s: not kept (%s)", path, error)
        return
    for old in path.parent.glob("approximate-*.faiss"):
        if old != path:
            old.unlink(missing_ok=True)
