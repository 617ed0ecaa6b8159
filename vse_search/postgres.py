"""Search by a PostgreSQL server with pgvector, for more vectors than one machine holds.

The index stays what counts; tables of the server are brought in line with it: images
that are new, or whose files have moved, are sent, those that are gone removed.

    vse_jax_UID.images   a row an image: id, day, camera, folders, vector
    vse_jax_UID.facts    the model, and the version of the index that the server has
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import psycopg
from absl import logging
from jaxtyping import Float32
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from vse_jax import InputError, progress, without_password
from vse_search.store import ALL, Filters, Hit, Snapshot, Store

_SENT = 2048  # images at a time: so many a kill loses
_LEAST = 20_000  # images; among fewer, exact search takes milliseconds
_NEAR = 200  # candidates that are scored exactly, at least
_CONNECTION: dict[str, Any] = {"autocommit": True, "connect_timeout": 10}
_SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {facts} (model text NOT NULL, version bigint NOT NULL);
INSERT INTO {facts} SELECT {model}, -1 WHERE NOT EXISTS (SELECT FROM {facts});
CREATE TABLE IF NOT EXISTS {images} (
  id bigint PRIMARY KEY, taken date, camera text, folders text[] NOT NULL,
  vector vector({dim}) STORAGE MAIN NOT NULL
);
CREATE INDEX IF NOT EXISTS by_day ON {images} (taken);
CREATE INDEX IF NOT EXISTS by_camera ON {images} (lower(camera));
CREATE INDEX IF NOT EXISTS by_folder ON {images} USING gin (folders);
"""
_GRAPH = """
CREATE INDEX IF NOT EXISTS graph ON {images}
USING hnsw ((vector::halfvec({dim})) halfvec_ip_ops);
ANALYZE {images};
"""
_PASSES = {
    "after": "taken >= %(after)s::date",
    "before": "taken <= %(before)s::date",
    "camera": "lower(camera) = lower(%(camera)s)",
    "folder": "folders @> ARRAY[%(folder)s]",
}
# <#> is the negative inner product. No index holds whole vectors: this is exact.
_EXACT = """
SELECT id, -(vector <#> %(query)s) FROM {images} WHERE {passes}
ORDER BY vector <#> %(query)s, id LIMIT %(top)s
"""
_APPROXIMATE = """
SELECT id, -(vector <#> %(query)s) FROM (
  SELECT id, vector FROM {images}
  ORDER BY vector::halfvec({dim}) <#> %(query)s::halfvec({dim}) LIMIT %(near)s
) ORDER BY vector <#> %(query)s, id LIMIT %(top)s
"""


class PostgresEngine:
    """Search in a store by PostgreSQL. Safe to share by threads.

    Exact with filters and among few images; else a graph (HNSW) over vectors of half
    precision finds candidates, which are scored by the vectors themselves.

    Args:
        store: the index.
        url: 'postgresql://USER@HOST/DATABASE'. What it lacks comes from PGPASSWORD,
            ~/.pgpass and so on, as for PostgreSQL's own programs.

    Raises:
        InputError: no such url, no server answers there, it has no pgvector, or tables
            of other columns or another model (names it without its password).
    """

    def __init__(self, store: Store, url: str | None) -> None:
        self._store, self._url = store, url or ""
        self._shown = without_password(self._url)
        self._snapshot: Snapshot | None = None  # what the server has
        try:
            known = conninfo_to_dict(self._url)
        except psycopg.ProgrammingError:  # whose words may hold a password
            known = {}
        if not known or "://" not in self._url:
            raise InputError("config.search.url: no postgresql://USER@HOST/DATABASE")
        self._connections = ConnectionPool(
            self._url,
            kwargs=_CONNECTION,
            configure=_configure,
            check=ConnectionPool.check_connection,
            min_size=0,
            max_size=8,
            timeout=10.0,
            open=True,
        )
        self.refresh()

    def refresh(self) -> None:
        """Sends what the index has got since; quick where that is nothing."""
        snapshot = self._store.snapshot(self._snapshot)
        with (
            self._clear_errors(),
            psycopg.connect(self._url, **_CONNECTION) as connection,
        ):
            if self._version(connection, snapshot) < snapshot.version:
                self._bring_in_line(connection, snapshot)
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
        passes = [
            sql.SQL(_PASSES[field])
            for field, value in vars(filters).items()
            if value is not None
        ]
        count = len(snapshot.ids)
        exact = passes or count < _LEAST or top > count // 100
        command = self._sql(
            _EXACT if exact else _APPROXIMATE,
            snapshot,
            passes=sql.SQL(" AND ").join(passes or [sql.SQL("true")]),
        )
        values = {"query": vector, "top": top, "near": max(_NEAR, 2 * top)}
        with self._clear_errors(), self._connections.connection() as connection:
            found = connection.execute(command, values | vars(filters)).fetchall()
        if not found:
            self._store.check_names(filters)
        least = -np.inf if min_score is None else min_score
        scores = {id: score for id, score in found if score >= least}
        return self._store.hits(scores, filters, of=snapshot)

    def close(self) -> None:
        """Ends the connections."""
        self._connections.close()

    def _sql(
        self, text: str, snapshot: Snapshot, **parts: sql.Composable
    ) -> sql.Composed:
        """With the names of an index's tables."""
        schema = f"vse_jax_{snapshot.uid}"
        return sql.SQL(text).format(
            schema=sql.Identifier(schema),
            facts=sql.Identifier(schema, "facts"),
            images=sql.Identifier(schema, "images"),
            dim=sql.Literal(self._store.dim),
            **parts,
        )

    def _version(self, connection: psycopg.Connection, snapshot: Snapshot) -> int:
        """Of the index, that the server has; -1: none yet."""
        facts = self._sql("SELECT model, version FROM {facts}", snapshot)
        try:
            [(model, version)] = connection.execute(facts).fetchall()
        except psycopg.errors.UndefinedTable:
            return -1
        if model != self._store.model:
            raise psycopg.DataError(f"vse_jax_{snapshot.uid}: another model's vectors")
        return version

    def _bring_in_line(
        self, connection: psycopg.Connection, snapshot: Snapshot
    ) -> None:
        """One process at a time does so; what a killed one has sent stays."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('vse_jax'))")
            model = sql.Literal(self._store.model)
            connection.execute(self._sql(_SCHEMA, snapshot, model=model))
        _configure(connection)
        free = connection.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s))", (snapshot.uid,)
        )
        if free.fetchone() == (False,):
            logging.info("%s: another process sends this index; waiting", self._shown)
            connection.execute("SELECT pg_advisory_lock(hashtext(%s))", (snapshot.uid,))
        if self._version(connection, snapshot) >= snapshot.version:
            return
        starts = range(0, max(len(snapshot.ids), 1), _SENT)
        for start in progress(starts, "compare and send", unit="batches"):
            self._send(connection, snapshot, slice(start, start + _SENT))
        if len(snapshot.ids) >= _LEAST:
            logging.info("%s: the graph is made, where there is none", self._shown)
            connection.execute(self._sql(_GRAPH, snapshot))
        done = self._sql("UPDATE {facts} SET version = %s", snapshot)
        connection.execute(done, (snapshot.version,))

    def _send(
        self, connection: psycopg.Connection, snapshot: Snapshot, part: slice
    ) -> None:
        """Makes what the server has of a part of the ids what the snapshot has."""
        ids = snapshot.ids[part].tolist()
        before = int(snapshot.ids[part.start - 1]) if part.start else 0
        last = ids[-1] if part.stop < len(snapshot.ids) else 2**63 - 1
        there = self._sql(
            "SELECT id, folders FROM {images} WHERE id > %s AND id <= %s", snapshot
        )
        has: dict[int, list[str]] = dict(connection.execute(there, (before, last)))
        known = self._store.images(ids, of=snapshot)
        delete = self._sql("DELETE FROM {images} WHERE id = ANY(%s)", snapshot)
        connection.execute(delete, ([*(has.keys() - known.keys())],))
        moved = [
            (folders, id)
            for id in known.keys() & has.keys()
            if (folders := _folders(known[id])) != has[id]
        ]
        update = self._sql("UPDATE {images} SET folders = %s WHERE id = %s", snapshot)
        insert = self._sql("COPY {images} FROM STDIN (FORMAT BINARY)", snapshot)
        with connection.cursor() as cursor:
            cursor.executemany(update, moved)
            with cursor.copy(insert) as copy:
                copy.set_types(["int8", "date", "text", "text[]", "vector"])
                for id, row in zip(ids, snapshot.rows[part], strict=True):
                    if id in known and id not in has:
                        hit, vector = known[id], snapshot.matrix[row]
                        day = hit.taken and date.fromisoformat(hit.taken[:10])
                        copy.write_row((id, day, hit.camera, _folders(hit), vector))

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"config.search.url: {self._shown}: PostgreSQL: {reason}"
            ) from None


def _configure(connection: psycopg.Connection) -> None:
    """Candidates of the graph: as many at first, and more where more are asked for."""
    register_vector(connection)
    connection.execute(f"SET hnsw.ef_search = {_NEAR}")
    connection.execute("SET hnsw.iterative_scan = relaxed_order")


def _folders(hit: Hit) -> list[str]:
    """The folders of its files, with those above them."""
    return sorted(
        {
            path[: slash.start()]
            for path in (hit.path, *hit.copies)
            for slash in re.finditer("/", path)
        }
    )
