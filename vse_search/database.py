"""The files of an index: a SQLite database, and the vectors in a file beside it.

    <index>/index.sqlite        images (one row a content), files (one a path), facts
    <index>/vectors-UID-N.f32   float32 [rows, D] and nothing else; see pictures.row
    <index>/lock                held by the process that writes

Vectors are on the disk before the transaction that tells of them; rows behind the last
one that a transaction told of, which a killed process left, are overwritten.

The database keeps SQLite's rollback journal: an index that nobody writes to is plain
files, which may be read where nothing may be written. While a reader reads, a writer
cannot end its transaction, so the vector file that a reader is told of is there.
A name of a vector file holds the index's uid: the rows of an index that was removed
never meet the vectors of the one that took its place.
"""

import contextlib
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from vse_jax import InputError, only_writer, printable

DATABASE = "index.sqlite"
_LAYOUT = 2  # of the database and the vector files
_SCHEMA = """
CREATE TABLE facts (
  layout INTEGER NOT NULL, uid TEXT NOT NULL,
  model TEXT NOT NULL, model_name TEXT NOT NULL,
  dim INTEGER NOT NULL,
  folder BLOB NOT NULL,          -- of the images, absolute; need not be UTF-8
  version INTEGER NOT NULL,      -- microseconds: no two transactions have the same
  removed INTEGER NOT NULL,      -- the version that last took or moved a row
  vectors TEXT NOT NULL,         -- name of the file
  rows INTEGER NOT NULL,         -- in it; images that were removed leave holes
  exclude TEXT NOT NULL,         -- a JSON list of patterns
  disks TEXT NOT NULL            -- a JSON object: see `folders.Passed`
);
CREATE TABLE pictures (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sha256 TEXT NOT NULL UNIQUE, row INTEGER NOT NULL UNIQUE,
  width INTEGER NOT NULL, height INTEGER NOT NULL, taken TEXT, camera TEXT
);
CREATE TABLE files (
  path TEXT NOT NULL,            -- relative, with slashes, as people see it
  raw BLOB NOT NULL,             -- its bytes where they are others, else empty
  bytes INTEGER NOT NULL,
  modified TEXT NOT NULL,        -- nanoseconds, which may take more than 64 bits
  picture INTEGER NOT NULL REFERENCES pictures (id),
  PRIMARY KEY (path, raw)
) WITHOUT ROWID;
CREATE INDEX files_of_picture ON files (picture);
"""


class _Connection(sqlite3.Connection):
    """Closed when the last snapshot that has it is dropped."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # it could not be opened
            self.close()


class Database:
    """The open files of an index. Safe to share by threads; one process may write.

    It is the index that lies in the folder now: one that was made anew there is opened
    by whatever is asked next.

    Attributes:
        index: its folder.
        model: fingerprint of the model that made the vectors.
        dim: D, the size of a vector.

    Every method raises InputError where the index has gone, or where one of another
    model has taken its place.
    """

    def __init__(self, index: Path, *, read_only: bool) -> None:
        self.index = index
        self._read_only = read_only
        self._guard = threading.RLock()
        self._identity = _identity(index)
        self._connection = _connect(index)
        facts = self._facts(self._connection)
        self.model: str = facts["model"]
        self.dim: int = facts["dim"]

    @classmethod
    def create(
        cls, index: Path, *, model: str, name: str, dim: int, folder: Path
    ) -> None:
        """Makes an empty index, whole or not at all, in the folder `index`.

        Raises:
            InputError: there is one already.
        """
        if cls.exists(index):
            raise InputError(f"{index}: is an index already")
        index.mkdir(parents=True, exist_ok=True)
        uid = secrets.token_hex(8)
        temporary = index / f".{DATABASE}.{uid}"
        now = microseconds()
        facts = {
            "layout": _LAYOUT,
            "uid": uid,
            "model": model,
            "model_name": printable(name),
            "dim": dim,
            "folder": os.fsencode(folder.resolve()),
            "version": now,
            "removed": now,
            "vectors": f"vectors-{uid}-1.f32",
            "rows": 0,
            "exclude": "[]",
            "disks": "{}",
        }
        try:
            with (
                clear_errors(index),
                contextlib.closing(sqlite3.connect(temporary)) as connection,
            ):
                connection.executescript(_SCHEMA)
                marks = ", ".join(f":{fact}" for fact in facts)
                connection.execute(f"INSERT INTO facts VALUES ({marks})", facts)
                connection.commit()
            temporary.replace(index / DATABASE)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def exists(index: Path) -> bool:
        """Whether there is an index, be it broken, in this folder."""
        return (index / DATABASE).exists()

    @classmethod
    @contextlib.contextmanager
    def open(cls, index: Path, *, read_only: bool) -> Iterator[Self]:
        """Opens an index; to write, also removes what a killed process left.

        Raises:
            InputError: there is none, it is broken (says how to build it anew), of
                another version of this program, or another process writes to it.
        """
        _identity(index)
        with contextlib.ExitStack() as stack:
            if not read_only:
                stack.enter_context(only_writer(index / "lock", "writes to this index"))
            store = cls(index, read_only=read_only)
            stack.callback(lambda: store._connection.close())
            if not read_only:
                store._all("PRAGMA synchronous = FULL")
                store._all("PRAGMA foreign_keys = ON")
                # Readers then wait for the end of a transaction only, not all of it.
                store._all("PRAGMA cache_spill = OFF")
                [(verdict,)] = store._all("PRAGMA quick_check(1)")
                if verdict != "ok":
                    raise _broken(index, DATABASE, verdict)
                current = store._facts()["vectors"]
                for path in index.glob("vectors-*.f32"):
                    if path.name != current:
                        path.unlink(missing_ok=True)
            with store._moment() as facts:
                store._map(facts)  # finds a vector file that is too short
            yield store

    def _current(self) -> sqlite3.Connection:
        """The connection to the index that lies in the folder now."""
        if self._connection.in_transaction:
            return self._connection
        identity = _identity(self.index)
        if identity != self._identity:
            if not self._read_only:
                raise InputError(
                    f"{self.index}: another index has taken the place of the one that "
                    "this process writes"
                )
            connection = _connect(self.index)
            facts = self._facts(connection)
            if (facts["model"], facts["dim"]) != (self.model, self.dim):
                raise InputError(
                    f"{self.index}: is the index of another model now "
                    f"({facts['model_name']!r}); start this program again"
                )
            self._connection, self._identity = connection, identity
        return self._connection

    def _facts(self, connection: sqlite3.Connection | None = None) -> sqlite3.Row:
        """The index's facts.

        Raises:
            InputError: it is broken, or of another version.
        """
        found = self._all("SELECT * FROM facts", of=connection)
        if len(found) != 1:
            raise _broken(self.index, DATABASE, "holds no facts")
        if found[0]["layout"] != _LAYOUT:
            raise InputError(
                f"{self.index}: index of another version of this program "
                f"(layout {found[0]['layout']}, not {_LAYOUT}); {_rebuild(self.index)}"
            )
        return found[0]

    def _all(
        self, sql: str, *values: Any, of: sqlite3.Connection | None = None
    ) -> list[sqlite3.Row]:
        """Rows of the database; `of`: of an earlier one."""
        with self._guard, clear_errors(self.index):
            return (of or self._current()).execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _moment(self) -> Iterator[sqlite3.Row]:
        """What is read inside is of one version; gives its facts."""
        with self._transaction("BEGIN"):
            yield self._facts()

    @contextlib.contextmanager
    def _change(self) -> Iterator[Any]:
        """A transaction that gives the index its next version; gives `execute`."""
        with self._transaction("BEGIN IMMEDIATE"):
            sql = "UPDATE facts SET version = MAX(version + 1, ?)"
            self._connection.execute(sql, (microseconds(),))
            yield self._connection.execute

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._guard, clear_errors(self.index):
            self._current().execute(begin)
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends it at a full disk
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _map(self, facts: sqlite3.Row) -> Float32[np.ndarray, "rows D"]:
        """The vectors, memory-mapped; inside a `_moment`."""
        name, shape = facts["vectors"], (facts["rows"], self.dim)
        if facts["rows"] == 0:
            return np.zeros(shape, np.float32)
        try:
            return np.asarray(
                np.memmap(self.index / name, np.float32, "r", shape=shape)
            )
        except (OSError, ValueError) as error:
            if _identity(self.index) != self._identity:
                raise InputError(
                    f"{self.index}: another index takes its place; try again"
                ) from None
            if isinstance(error, FileNotFoundError | ValueError):  # not there, or short
                raise _broken(self.index, name, str(error)) from None
            raise InputError(f"{self.index / name}: {error.strerror}") from None


def microseconds() -> int:
    return time.time_ns() // 1000


def _identity(index: Path) -> tuple[int, int]:
    """Tells the database from another one of its name, as long as it is open.

    Raises:
        InputError: there is none, or it cannot be seen.
    """
    try:
        status = (index / DATABASE).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{index}: no index; make one with --mode=index") from None
    except OSError as error:
        raise InputError(f"{index / DATABASE}: {error.strerror}") from None
    return status.st_dev, status.st_ino


def _connect(index: Path) -> sqlite3.Connection:
    """To the database; where it may not be written, it can be read."""
    with clear_errors(index):
        # "rw" for readers, too: they undo what a killed writer had begun.
        connection = sqlite3.connect(
            f"{(index / DATABASE).resolve().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=30.0,
            factory=_Connection,
        )
    connection.row_factory = sqlite3.Row
    connection.create_function("sortable", 1, _sortable, deterministic=True)
    return connection


def _sortable(path: str) -> str:
    """A file's name such that IMG_9.jpg comes before img_10.jpg."""
    name = path.rpartition("/")[2].casefold()
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name)


@contextlib.contextmanager
def clear_errors(index: Path) -> Iterator[None]:
    """SQLite's errors as one line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK":
            raise InputError(
                f"{index / DATABASE}: its last update was killed, and nothing may be "
                "written here; run --mode=index where it may"
            ) from None
        # A database that is damaged, or has no tables, which never was whole. A full
        # disk, a lock, … may pass; and the rest are errors of this program.
        if type(error) is sqlite3.DatabaseError or str(error).startswith("no such"):
            raise _broken(index, DATABASE, str(error)) from None
        if isinstance(error, sqlite3.OperationalError):
            raise InputError(f"{index / DATABASE}: {error}") from None
        raise


def _broken(index: Path, name: str, reason: str) -> InputError:
    return InputError(f"{index / name}: broken index ({reason}); {_rebuild(index)}")


def _rebuild(index: Path) -> str:
    return f"remove the folder {index} and run --mode=index again"
