"""An index on disk: what is known of pictures in SQLite, vectors in a file beside it.

    <index>/index.sqlite        pictures (one row a content), files (one a path), facts
    <index>/vectors-UID-N.f32   float32 [rows, D] and nothing else; see picture.row
    <index>/lock                held by the process that writes

A picture is its content: files with equal bytes are one picture with several paths, and
a file whose content changes becomes another picture. So an id always means the same
pixels. Ids grow and are never used twice.

Vectors are on the disk before the transaction that tells of them; what a killed process
left behind the last row that is told of is overwritten by the next one.

The database keeps SQLite's rollback journal: an index that nobody writes to is plain
files, which may be read where nothing may be written. While a reader reads, a writer
cannot end its transaction, so the vector file that a reader is told of is there.
A name of a vector file holds the index's uid: the rows of an index that was removed
never meet the vectors of the one that took its place.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int64

from vse_jax import InputError, named_in_errors, only_writer, printable
from vse_search.engine import Filters, Row

DATABASE = "index.sqlite"
_LAYOUT = 2  # of the database and the vector files
_SCHEMA = """
CREATE TABLE facts (
  layout INTEGER NOT NULL, uid TEXT NOT NULL,
  model TEXT NOT NULL, model_name TEXT NOT NULL,
  dim INTEGER NOT NULL,
  folder BLOB NOT NULL,          -- of the pictures, absolute; need not be UTF-8
  version INTEGER NOT NULL,      -- microseconds: no two transactions have the same
  removed INTEGER NOT NULL,      -- the version that last took or moved a row
  vectors TEXT NOT NULL,         -- name of the file
  rows INTEGER NOT NULL,         -- in it; pictures that were removed leave holes
  exclude TEXT NOT NULL,         -- a JSON list of patterns
  disks TEXT NOT NULL            -- a JSON object: see `pictures.Passed`
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
# Until the end of an update, a picture whose file has changed may have none.
_FOUND = "EXISTS (SELECT 1 FROM files WHERE files.picture = pictures.id)"
Order = Literal["newest", "oldest", "name"]
_ORDERS: dict[Order, str] = {
    "newest": "taken IS NULL, taken DESC, path",
    "oldest": "taken IS NULL, taken, path",
    "name": "sortable(path), path",
}


class File(NamedTuple):
    """A picture file as it was when it was read."""

    path: str  # relative, with slashes, as the system gives its name
    bytes: int
    modified: int  # nanoseconds
    sha256: str


class NewPicture(NamedTuple):
    """A picture whose vector is to be added."""

    file: File
    width: int
    height: int
    taken: str | None
    camera: str | None


@dataclass(frozen=True)
class Snapshot:
    """All vectors as of one version of the index.

    Attributes:
        uid: of the index.
        matrix: memory-mapped; some of its rows are no picture's any more.
        ids: of the pictures, ascending. During an update some have no file any more.
        rows: which row of `matrix` is each picture's, ascending, too.
        connection: to the database that tells of these ids. It can be read when another
            index has taken the place of this one, too.
    """

    uid: str
    version: int
    matrix: Float32[np.ndarray, "rows D"]
    ids: Int64[np.ndarray, " pictures"]
    rows: Int64[np.ndarray, " pictures"]
    connection: sqlite3.Connection


class _Connection(sqlite3.Connection):
    """Closed when the last snapshot that has it is dropped."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # it could not be opened
            self.close()


class Store:
    """An open index. Safe to share by threads; one process at a time may write.

    It is the index that lies in the folder now: one that was made anew there is opened
    by whatever is asked next. Only a `Snapshot` stays with the index that it is of.

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

    # ---- Opening -------------------------------------------------------------------

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
        now = _microseconds()
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
                _clear_errors(index),
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
                store._prepare_writing()
            with store._moment() as facts:
                store._map(facts)  # finds a vector file that is too short
            yield store

    def _prepare_writing(self) -> None:
        self._all("PRAGMA synchronous = FULL")
        self._all("PRAGMA foreign_keys = ON")
        # Readers then wait for the end of a transaction only, not for all of it.
        self._all("PRAGMA cache_spill = OFF")
        [(verdict,)] = self._all("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _broken(self.index, DATABASE, verdict)
        current = self._facts()["vectors"]
        for path in self.index.glob("vectors-*.f32"):
            if path.name != current:
                path.unlink(missing_ok=True)

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

    # ---- Reading -------------------------------------------------------------------

    def _all(
        self, sql: str, *values: Any, of: sqlite3.Connection | None = None
    ) -> list[sqlite3.Row]:
        """Rows of the database; `of`: of an earlier one."""
        with self._guard, _clear_errors(self.index):
            return (of or self._current()).execute(sql, values).fetchall()

    @property
    def uid(self) -> str:
        """No other index has it, not even one made anew in this folder."""
        return self._facts()["uid"]

    @property
    def model_name(self) -> str:
        """Of the model that made the vectors, for people."""
        return self._facts()["model_name"]

    @property
    def folder(self) -> Path:
        """Of the pictures, absolute."""
        return Path(os.fsdecode(self._facts()["folder"]))

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of what updates leave out."""
        return tuple(json.loads(self._facts()["exclude"]))

    @property
    def disks(self) -> dict[str, str]:
        """On which disks the folders were at the last update; see `pictures.Passed`."""
        return json.loads(self._facts()["disks"])

    def version(self) -> int:
        """A number that grows with every change of the index.

        An index that is made anew in this folder has none of the earlier one's.
        """
        return self._facts()["version"]

    def count(self) -> int:
        """Pictures that can be found; files with equal content count once."""
        return self._all(f"SELECT COUNT(*) FROM pictures WHERE {_FOUND}")[0][0]

    def picture(self, id: int) -> Row | None:
        """What is known of a picture; None where there is none (any more)."""
        return self.pictures([id]).get(id)

    def pictures(
        self,
        ids: Iterable[int] | None = None,
        folder: str | None = None,
        of: Snapshot | None = None,
    ) -> dict[int, Row]:
        """What is known of pictures, by id; without those that are not there any more.

        Args:
            ids: None: of all.
            folder: only of those with a file in this folder, whose path they then have.
            of: that the ids are from; None: from the index that is there now.
        """
        sql = (
            "SELECT id, path, raw, width, height, taken, camera, bytes "
            "FROM pictures JOIN files ON picture = id "
        )
        values: list[str] = []
        if ids is not None:
            sql += "WHERE id IN (SELECT value FROM json_each(?)) "
            values.append(json.dumps([int(id) for id in ids]))
        sql += "ORDER BY id, "
        if folder is not None:
            sql += "path > ? AND path < ? DESC, "
            values += _below(folder)
        files = self._all(f"{sql} path, raw", *values, of=of.connection if of else None)
        found = {}
        for id, same in itertools.groupby(files, key=lambda file: file["id"]):
            first, *others = same
            if folder is not None and not first["path"].startswith(f"{folder}/"):
                continue
            known = dict(first)
            known["file"] = _file(known["path"], known.pop("raw"))
            found[id] = Row(**known, copies=[other["path"] for other in others])
        return found

    def named(self, name: str) -> dict[int, str]:
        """The pictures with a file of this name, and its path: id → path.

        Args:
            name: a path below the pictures' folder, or the end of one, from a '/' on.
                Where no file has it as it is written, capitals do not matter, nor which
                of Unicode's forms spells an accent.
        """
        name = name.encode(errors="replace").decode()  # half characters are in none
        sql = "SELECT path, picture FROM files"
        ends = "WHERE path = ?1 OR substr(path, -length(?1) - 1) = '/' || ?1"
        found = self._all(f"{sql} {ends} ORDER BY path", name)
        if not found:
            asked = _folded(name)
            found = [
                row
                for row in self._all(f"{sql} ORDER BY path")
                if f"/{_folded(row[0])}".endswith(f"/{asked}")
            ]
        whole = [row for row in found if row[0] == name]  # before those in folders
        pictures: dict[int, str] = {}
        for path, id in whole or found:
            pictures.setdefault(id, path)
        return pictures

    def vector(self, id: int) -> Float32[np.ndarray, " D"] | None:
        """A picture's vector; None where there is no such picture."""
        with self._moment() as facts:
            found = self._all("SELECT row FROM pictures WHERE id = ?", id)
            return np.array(self._map(facts)[found[0][0]]) if found else None

    def vectors(self, ids: Sequence[int]) -> Float32[np.ndarray, "N D"]:
        """The vectors of pictures; zeros where there is no such picture (any more)."""
        found = np.zeros((len(ids), self.dim), np.float32)
        sql = (
            "SELECT id, row FROM pictures WHERE id IN (SELECT value FROM json_each(?))"
        )
        with self._moment() as facts:
            matrix = self._map(facts)
            rows = dict(map(tuple, self._all(sql, json.dumps(list(ids)))))
            for place, id in enumerate(ids):
                if id in rows:
                    found[place] = matrix[rows[id]]
        return found

    def cameras(self) -> list[str]:
        """The cameras of the pictures, by name."""
        sql = (
            "SELECT DISTINCT camera FROM pictures "
            f"WHERE camera IS NOT NULL AND {_FOUND} ORDER BY camera"
        )
        return [row[0] for row in self._all(sql)]

    def dates(self) -> tuple[str | None, str | None]:
        """The first and the last day on which a picture was taken, 'YYYY-MM-DD'."""
        sql = f"SELECT MIN(taken), MAX(taken) FROM pictures WHERE {_FOUND}"
        first, last = self._all(sql)[0]
        return (first and first[:10]), (last and last[:10])

    def folders(self) -> list[str]:
        """The folders with pictures in or below them, relative, by name."""
        parents = {
            path.rpartition("/")[0] for (path,) in self._all("SELECT path FROM files")
        }
        found = set()
        for parent in parents:
            while parent and parent not in found:
                found.add(parent)
                parent = parent.rpartition("/")[0]
        return sorted(found)

    def matching(
        self, filters: Filters, of: Snapshot | None = None
    ) -> Int64[np.ndarray, " found"]:
        """Ids of the pictures that pass `filters`, ascending.

        Args:
            filters: what they must have.
            of: that the ids are to be of; None: the index that is there now.

        Raises:
            InputError: a camera or a folder that no picture has.
        """
        where, values = _passing(filters)
        sql = f"SELECT id FROM pictures WHERE {where} ORDER BY id"
        found = self._all(sql, *values, of=of.connection if of else None)
        if not found:
            self.check_names(filters)
        return np.fromiter((row[0] for row in found), np.int64, len(found))

    def listed(
        self, filters: Filters, order: Order, limit: int, offset: int = 0
    ) -> tuple[int, list[Row]]:
        """How many pictures pass `filters`, and some of them, in an order.

        Those without a date come last in both orders by date.

        Raises:
            InputError: a camera or a folder that no picture has.
        """
        where, values = _passing(filters)
        [(total,)] = self._all(f"SELECT COUNT(*) FROM pictures WHERE {where}", *values)
        if not total:
            self.check_names(filters)
        if filters.folder is not None:  # a copy elsewhere does not give its name
            where += " AND path > ? AND path < ?"
            values += _below(filters.folder)
        found = self._all(
            "SELECT id, MIN(path) AS path FROM pictures JOIN files ON picture = id "
            f"WHERE {where} GROUP BY id ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?",
            *(*values, limit, offset),
        )
        known = self.pictures([row["id"] for row in found], filters.folder)
        return total, [known[row["id"]] for row in found if row["id"] in known]

    def check_names(self, filters: Filters) -> None:
        """Raises InputError if no picture has the camera or the folder asked for."""
        for field, known in (("camera", self.cameras()), ("folder", self.folders())):
            asked = getattr(filters, field)
            same = str.lower if field == "camera" else str
            if asked is not None and same(asked) not in map(same, known):
                some = ", ".join(known[:8]) or "none"
                more = ", …" if len(known) > 8 else ""
                raise InputError(
                    f"{field}: no picture has {asked!r}; there is {some}{more}"
                )

    def snapshot(self, before: Snapshot | None = None) -> Snapshot:
        """All vectors and whose they are, of one moment.

        With an earlier one only what is new is read, unless something was removed.

        Raises:
            InputError: the vector file is not there or too short.
        """
        nothing = np.zeros(0, np.int64)
        ids, rows = nothing, nothing
        with self._moment() as facts:
            if (
                before is not None
                and before.connection is self._connection
                and before.uid == facts["uid"]
                and facts["removed"] <= before.version <= facts["version"]
            ):
                ids, rows = before.ids, before.rows
            cursor = self._connection.cursor()
            cursor.row_factory = None
            last = int(ids[-1]) if len(ids) else 0
            sql = "SELECT id, row FROM pictures WHERE id > ? ORDER BY id"
            pairs = np.fromiter(cursor.execute(sql, (last,)), np.dtype((np.int64, 2)))
            matrix = self._map(facts)
            new_ids, new_rows = np.ascontiguousarray(pairs.T)
            return Snapshot(
                uid=facts["uid"],
                version=facts["version"],
                matrix=matrix,
                ids=np.concatenate([ids, new_ids]),
                rows=np.concatenate([rows, new_rows]),
                connection=self._connection,
            )

    @contextlib.contextmanager
    def _moment(self) -> Iterator[sqlite3.Row]:
        """What is read inside is of one version; gives its facts."""
        with self._guard, _clear_errors(self.index), self._transaction("BEGIN"):
            yield self._facts()

    def _map(self, facts: sqlite3.Row) -> Float32[np.ndarray, "rows D"]:
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

    # ---- Writing -------------------------------------------------------------------

    def files(self) -> dict[str, File]:
        """The files of the index by path."""
        sql = (
            "SELECT path, raw, bytes, modified, sha256 FROM files "
            "JOIN pictures ON pictures.id = picture"
        )
        files = (
            File(_file(path, raw), bytes, int(modified), sha256)
            for path, raw, bytes, modified, sha256 in self._all(sql)
        )
        return {file.path: file for file in files}

    def find(self, sha256: str) -> int | None:
        """Id of the picture with this content."""
        found = self._all("SELECT id FROM pictures WHERE sha256 = ?", sha256)
        return found[0][0] if found else None

    def add(
        self, pictures: Sequence[NewPicture], vectors: Float32[np.ndarray, "N D"]
    ) -> None:
        """Adds pictures of new content: all of them, or, when killed, none."""
        facts = self._facts()
        rows = facts["rows"]
        path = self.index / facts["vectors"]
        with named_in_errors(path), path.open("ab") as file:
            file.truncate(rows * self.dim * 4)
            file.write(np.ascontiguousarray(vectors, np.float32).data)
            file.flush()
            os.fsync(file.fileno())
        with self._change() as execute:
            for row, new in enumerate(pictures, rows):
                id = execute(
                    "INSERT INTO pictures VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                    (new.file.sha256, row, *new[1:]),
                ).lastrowid
                _note(execute, new.file, id)
            execute("UPDATE facts SET rows = ?", (rows + len(pictures),))

    def link(self, files: Iterable[File]) -> None:
        """Notes files whose content the index has."""
        with self._change() as execute:
            for file in files:
                sql = "SELECT id FROM pictures WHERE sha256 = ?"
                for (id,) in execute(sql, (file.sha256,)).fetchall():
                    _note(execute, file, id)

    def forget(self, paths: Iterable[str]) -> None:
        """Removes files, and the pictures that have none any more."""
        with self._change() as execute:
            for path in paths:
                execute("DELETE FROM files WHERE path = ? AND raw = ?", _names(path))
            if execute(f"DELETE FROM pictures WHERE NOT {_FOUND}").rowcount:
                execute("UPDATE facts SET removed = version")

    def move(self, folder: Path) -> None:
        """Notes that the pictures' folder lies elsewhere now."""
        with self._change() as execute:
            execute("UPDATE facts SET folder = ?", (os.fsencode(folder),))

    def remember(self, exclude: Sequence[str], disks: dict[str, str]) -> None:
        """Notes what this update leaves out, and where its folders are."""
        if (tuple(exclude), disks) == (self.exclude, self.disks):
            return
        with self._change() as execute:
            facts = (json.dumps(list(exclude)), json.dumps(disks))
            execute("UPDATE facts SET exclude = ?, disks = ?", facts)

    def compact(self) -> None:
        """Writes the vector file anew without holes if most of its rows are holes.

        The old file goes when the index is next opened to write: another host may still
        read it, and would lose what it has mapped.
        """
        now = self.snapshot()
        if len(now.matrix) <= 2 * len(now.rows) + 1000:
            return
        start, _, number = self._facts()["vectors"].rpartition("-")
        name = f"{start}-{int(number.removesuffix('.f32')) + 1}.f32"
        path = self.index / name
        with named_in_errors(path), path.open("wb") as file:
            for start in range(0, len(now.rows), 4096):
                file.write(now.matrix[now.rows[start : start + 4096]].data)
            file.flush()
            os.fsync(file.fileno())
        with self._change() as execute:
            # Both ascend, so no row is taken by a picture that is still to move.
            for row, id in enumerate(now.ids.tolist()):
                execute("UPDATE pictures SET row = ? WHERE id = ?", (row, id))
            facts = (name, len(now.rows))
            execute("UPDATE facts SET vectors = ?, rows = ?, removed = version", facts)

    @contextlib.contextmanager
    def _change(self) -> Iterator[Any]:
        """A transaction that gives the index its next version."""
        with (
            self._guard,
            _clear_errors(self.index),
            self._transaction("BEGIN IMMEDIATE"),
        ):
            sql = "UPDATE facts SET version = MAX(version + 1, ?)"
            self._connection.execute(sql, (_microseconds(),))
            yield self._connection.execute

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._current().execute(begin)
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it itself at a full disk
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _note(execute: Any, file: File, id: int) -> None:
    """Writes down that a picture has this file."""
    facts = (*_names(file.path), file.bytes, str(file.modified), id)
    execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", facts)


def _names(path: str) -> tuple[str, bytes]:
    """A file's path as people see it, and its bytes where they are others."""
    raw = os.fsencode(path)
    shown = printable(raw.decode(errors="surrogateescape"))
    return shown, b"" if shown.encode() == raw else raw


def _file(shown: str, raw: bytes) -> str:
    """The path as the system has it."""
    return os.fsdecode(raw or shown.encode())


def _sortable(path: str) -> str:
    """A file's name such that IMG_9.jpg comes before img_10.jpg."""
    name = path.rpartition("/")[2].casefold()
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name)


def _passing(filters: Filters) -> tuple[str, list[str]]:
    """A condition on `pictures`, and its values."""
    conditions, values = [_FOUND], []
    if filters.after is not None:
        conditions.append("taken >= ?")
        values.append(filters.after)
    if filters.before is not None:
        conditions.append("taken <= ?")
        values.append(f"{filters.before}T99")  # after any time of that day
    if filters.camera is not None:
        conditions.append("camera = ? COLLATE NOCASE")
        values.append(filters.camera)
    if filters.folder is not None:
        conditions.append(
            "id IN (SELECT picture FROM files WHERE path > ? AND path < ?)"
        )
        values += _below(filters.folder)
    return " AND ".join(conditions), values


def _below(folder: str) -> tuple[str, str]:
    """What is greater and less than these starts with 'folder/': '0' follows '/'."""
    return f"{folder}/", f"{folder}0"


def _microseconds() -> int:
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
    with _clear_errors(index):
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


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


@contextlib.contextmanager
def _clear_errors(index: Path) -> Iterator[None]:
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
