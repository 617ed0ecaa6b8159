"""Search by a Qdrant server, for more vectors than one machine holds.

The index stays what counts; a collection of the server is brought in line with it:
images that are new, or whose files have moved, are sent, those that are gone removed.
`<index>/qdrant.json` notes what the server has, so that nothing is compared in vain.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from vse_jax import InputError, progress, write_atomically
from vse_search.store import ALL, Filters, Hit, Snapshot, Store

_SENT = 256  # points at a time
_COMPARED = 4096


class QdrantEngine:
    """Search in a store by Qdrant.

    Args:
        store: the index.
        url: 'http://HOST:6333', https, or ':memory:' for tests. The environment's
            QDRANT_API_KEY is sent.

    Raises:
        InputError: no such url, or no server answers there (names it).
    """

    def __init__(self, store: Store, url: str | None) -> None:
        self._store, self._url = store, url
        self._snapshot: Snapshot | None = None  # what the server has
        self._client = _client(url)
        self.refresh()

    def refresh(self) -> None:
        """Sends what the index has got since; quick where that is nothing."""
        snapshot = self._store.snapshot(self._snapshot)
        with _clear_errors(self._url):
            there = self._client.collection_exists(_collection(snapshot))
            if not there:
                self._create(snapshot)
            if not there or self._noted() != snapshot.version:
                self._bring_in_line(snapshot)
                self._note(snapshot.version)
        self._snapshot = snapshot

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """See `engines.Engine`."""
        snapshot = self._snapshot
        assert snapshot is not None
        with _clear_errors(self._url):
            found = self._client.query_points(
                _collection(snapshot),
                query=vector.tolist(),
                limit=top,
                query_filter=_conditions(filters),
                score_threshold=min_score,
                with_payload=False,
            ).points
        if not found:
            self._store.check_names(filters)
        scores = {int(hit.id): hit.score for hit in found}
        return self._store.hits(scores, filters, of=snapshot)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _create(self, snapshot: Snapshot) -> None:
        size = models.VectorParams(size=self._store.dim, distance=models.Distance.DOT)
        name = _collection(snapshot)
        self._client.create_collection(name, vectors_config=size)
        kinds = {
            "taken": models.PayloadSchemaType.INTEGER,
            "camera": models.PayloadSchemaType.KEYWORD,
            "folders": models.PayloadSchemaType.KEYWORD,
        }
        if self._url == ":memory:":
            return  # it has no such indices
        for field, kind in kinds.items():
            self._client.create_payload_index(name, field, kind)

    def _bring_in_line(self, snapshot: Snapshot) -> None:
        name = _collection(snapshot)
        has = dict(self._digests(name))
        rows = dict(zip(snapshot.ids.tolist(), snapshot.rows.tolist(), strict=True))
        known = self._store.images(of=snapshot)
        payloads = {id: _payload(row) for id, row in known.items() if id in rows}
        gone: list[Any] = list(has.keys() - payloads.keys())
        for ids in _parts(gone, _COMPARED):
            self._client.delete(name, models.PointIdsList(points=ids))
        new = [id for id, it in payloads.items() if has.get(id) != it["digest"]]
        parts = _parts(new, _SENT)
        for ids in progress(parts, "send", -(-len(new) // _SENT), "batches"):
            vectors = snapshot.matrix[[rows[id] for id in ids]].tolist()
            points = [
                models.PointStruct(id=id, vector=vector, payload=payloads[id])
                for id, vector in zip(ids, vectors, strict=True)
            ]
            self._client.upsert(name, points)

    def _digests(self, name: str) -> Iterator[tuple[int, str]]:
        """What the server has: each image's id, and the digest of its data."""
        offset = None
        while True:
            points, offset = self._client.scroll(
                name,
                limit=_COMPARED,
                offset=offset,
                with_payload=["digest"],
            )
            for point in points:
                yield int(point.id), (point.payload or {}).get("digest", "")
            if offset is None:
                return

    def _noted(self) -> int | None:
        """The version of the index that the server has, where that is known."""
        try:
            note = json.loads((self._store.index / "qdrant.json").read_text())
            return note["version"] if note["url"] == self._url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note(self, version: int) -> None:
        note = json.dumps({"url": self._url, "version": version})
        path = self._store.index / "qdrant.json"
        try:
            write_atomically(path, note.encode())
        except OSError as error:  # the next start compares, and finds nothing to send
            logging.warning("%s: not kept (%s)", path, error.strerror)


def _collection(snapshot: Snapshot) -> str:
    return f"vse_jax_{snapshot.uid}"


def _client(url: str | None) -> QdrantClient:
    if url == ":memory:":
        return QdrantClient(url)
    if url is None or not url.startswith(("http://", "https://")):
        raise InputError(
            f"config.search.url: {url!r} is no http://HOST:6333, https://… or :memory:"
        )
    with _clear_errors(url):
        return QdrantClient(
            url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False
        )


@contextlib.contextmanager
def _clear_errors(url: str | None) -> Iterator[None]:
    try:
        yield
    except (ApiException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"config.search.url: {url}: Qdrant: {reason}") from None


def _parts(ids: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _day(day: str) -> int:
    """'2019-05-01T12:00:00' → 20190501."""
    return int(day[:10].replace("-", ""))


def _payload(row: Hit) -> dict:
    """What filters need, and a digest of it."""
    folders = {
        "/".join(parts[:length])
        for path in (row.path, *row.copies)
        for parts in [path.split("/")]
        for length in range(1, len(parts))
    }
    payload: dict = {
        "taken": None if row.taken is None else _day(row.taken),
        "camera": None if row.camera is None else row.camera.lower(),
        "folders": sorted(folders),
    }
    digest = hashlib.sha256(json.dumps(payload).encode()).hexdigest()[:16]
    return payload | {"digest": digest}


def _conditions(filters: Filters) -> models.Filter | None:
    must: list = []
    if filters.after is not None or filters.before is not None:
        days = models.Range(
            gte=None if filters.after is None else _day(filters.after),
            lte=None if filters.before is None else _day(filters.before),
        )
        must.append(models.FieldCondition(key="taken", range=days))
    if filters.camera is not None:
        camera = models.MatchValue(value=filters.camera.lower())
        must.append(models.FieldCondition(key="camera", match=camera))
    if filters.folder is not None:
        folder = models.MatchValue(value=filters.folder)
        must.append(models.FieldCondition(key="folders", match=folder))
    return models.Filter(must=must) if must else None
