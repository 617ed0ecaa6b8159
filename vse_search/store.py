"""An index: images, their files, and the vectors of a model.

An image is its content: files with equal bytes are one image with several paths, and a
file whose content changes becomes another image. So an id always means the same pixels.
Ids grow and are never used twice.

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
import datetime
import itertools
import json
import os
import re
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int64

from vse_jax import InputError, named_in_errors, only_writer, printable

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
# Until the end of an update, an image whose file has changed may have none.
_FOUND = "EXISTS (SELECT 1 FROM files WHERE files.picture = pictures.id)"
_BY_ID = "id IN (SELECT value FROM json_each(:ids))"
_IN_FOLDER = "path > :folder || '/' AND path < :folder || '0'"  # '0' follows '/'
_PASSES = {
    "after": "taken >= :after",
    "before": "taken <= :before || 'T99'",  # after any time of that day
    "camera": "camera = :camera COLLATE NOCASE",
    "folder": f"id IN (SELECT picture FROM files WHERE {_IN_FOLDER})",
}
SortOrder = Literal["newest", "oldest", "name"]
_ORDERS: dict[SortOrder, str] = {
    "newest": "taken IS NULL, taken DESC, path",
    "oldest": "taken IS NULL, taken, path",
    "name": "sortable(path), path",
}


@dataclass(frozen=True)
class Filters:
    """Which images may be found; None: any.

    Raises:
        InputError: a date that is none (names the field).
    """

    after: str | None = None  # 'YYYY-MM-DD'; an image without a date does not pass
    before: str | None = None  # the last day
    camera: str | None = None  # as `Store.cameras` spells it, in any capitals
    folder: str | None = None  # as `Store.folders` spells it, with those below it

    def __post_init__(self) -> None:
        for field in ("after", "before"):
            day = getattr(self, field)
            if day is not None and not _is_day(day):
                raise InputError(f"{field}: {day!r} is no day of the form YYYY-MM-DD")
        folder = printable(self.folder or "").strip("/")
        object.__setattr__(self, "folder", None if folder in ("", ".") else folder)

    def condition(self) -> str:
        """In SQL, on `pictures`; `vars` has its values."""
        asked = [field for field, value in vars(self).items() if value is not None]
        return " AND ".join([_FOUND, *(_PASSES[field] for field in asked)])


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


ALL = Filters()  # every image passes


@dataclass(slots=True)
class Hit:
    """An image of an index, and the score with which a search found it."""

    id: int
    # Of its file, the first one by name (in the folder that a filter names), as people
    # see it: relative to the images' folder, with slashes, `printable`.
    path: str
    file: str  # the same path as the system has it
    width: int
    height: int
    taken: str | None  # as in `images.DecodedImage`
    camera: str | None
    bytes: int  # size of the file
    copies: list[str]  # paths of the other files with the same content
    score: float | None = None  # inner product with the query; None: not searched


class File(NamedTuple):
    """An image file as it was when it was read."""

    path: str  # relative, with slashes, as the system gives its name
    bytes: int
    modified: int  # nanoseconds
    sha256: str


class NewImage(NamedTuple):
    """An image whose vector is to be added."""

    file: File
    width: int
    height: int
    taken: str | None
    camera: str | None


@dataclass(frozen=True)
class Snapshot:
    """All vectors as of one version of the index."""

    uid: str  # of the index
    version: int
    matrix: Float32[np.ndarray, "rows D"]  # memory-mapped; some rows are no image's
    ids: Int64[np.ndarray, " images"]  # ascending; during an update some have no file
    rows: Int64[np.ndarray, " images"]  # of `matrix`, each image's; ascending, too
    # To the database that tells of these ids. It can be read when another index has
    # taken the place of this one, too.
    connection: sqlite3.Connection


class _Connection(sqlite3.Connection):
    """Closed when the last snapshot that has it is dropped."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # it could not be opened
            self.close()


class Store:
    """An open index. Safe to share by threads; one process may write.

    It is the index that lies in the folder now: a new one in its place is opened
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

    @classmethod
    def create(
        cls, index: Path, *, model: str, name: str, dim: int, folder: Path
    ) -> None:
        """Makes an empty index, whole or not at all; there must be none."""
        if cls.exists(index):
            raise InputError(f"{index}: is an index already")
        index.mkdir(parents=True, exist_ok=True)
        uid = secrets.token_hex(8)
        temporary = index / f".{DATABASE}.{uid}"
        now = time.time_ns() // 1000
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
        """Whether there is an index, even a broken one, in this folder."""
        return (index / DATABASE).exists()

    @classmethod
    @contextlib.contextmanager
    def open(cls, index: Path, *, read_only: bool) -> Iterator[Self]:
        """Opens an index; to write, also removes what a killed process left.

        Raises:
            InputError: there is none, it is broken (says how to build it again), of
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
        """The index's facts; raises if it is broken, or of another version."""
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
        self, sql: str, values: Any = (), of: sqlite3.Connection | None = None
    ) -> list[sqlite3.Row]:
        """Rows of the database; `of`: of an earlier one."""
        with self._guard, _clear_errors(self.index):
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
            self._connection.execute(sql, (time.time_ns() // 1000,))
            yield self._connection.execute

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._guard, _clear_errors(self.index):
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

    # ---- Reading -------------------------------------------------------------------

    @property
    def uid(self) -> str:
        """No other index has it, not even a later one in this folder."""
        return self._facts()["uid"]

    @property
    def model_name(self) -> str:
        """Of the model that made the vectors, for people."""
        return self._facts()["model_name"]

    @property
    def folder(self) -> Path:
        """Of the images, absolute."""
        return Path(os.fsdecode(self._facts()["folder"]))

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of what updates leave out."""
        return tuple(json.loads(self._facts()["exclude"]))

    @property
    def disks(self) -> dict[str, str]:
        """On which disks the folders were at the last update; see `folders.Passed`."""
        return json.loads(self._facts()["disks"])

    def version(self) -> int:
        """A number that grows with every change of the index.

        A later index in this folder has none of the earlier one's.
        """
        return self._facts()["version"]

    def count(self) -> int:
        """Images that can be found; files with equal content count once."""
        return self._all(f"SELECT COUNT(*) FROM pictures WHERE {_FOUND}")[0][0]

    def image(self, id: int) -> Hit | None:
        """What is known of an image; None where there is none (any more)."""
        return self.images([id]).get(id)

    def images(
        self,
        ids: Iterable[int] | None = None,
        folder: str | None = None,
        of: Snapshot | None = None,
    ) -> dict[int, Hit]:
        """What is known of images, by id; without those that are not there any more.

        Args:
            ids: None: of all.
            folder: only of those with a file in this folder, whose path they then have.
            of: that the ids are from; None: from the index that is there now.
        """
        sql = (
            "SELECT id, path, raw, width, height, taken, camera, bytes "
            "FROM pictures JOIN files ON picture = id "
        )
        if ids is not None:
            sql += f"WHERE {_BY_ID} "
        sql += f"ORDER BY id, {_IN_FOLDER} DESC, path, raw"
        values = {"ids": json.dumps([int(id) for id in ids or ()]), "folder": folder}
        files = self._all(sql, values, of=of.connection if of else None)
        found = {}
        for id, same in itertools.groupby(files, key=lambda file: file["id"]):
            first, *others = same
            if folder is not None and not first["path"].startswith(f"{folder}/"):
                continue
            known = dict(first)
            known["file"] = _file(known["path"], known.pop("raw"))
            found[id] = Hit(**known, copies=[other["path"] for other in others])
        return found

    def hits(
        self,
        scores: Mapping[int, float],
        filters: Filters = ALL,
        of: Snapshot | None = None,
    ) -> list[Hit]:
        """The images with these scores, by id, in their order.

        Without those whose files were removed or changed meanwhile.
        """
        known = self.images(scores, filters.folder, of)
        found = [known[id] for id in scores if id in known]
        for hit in found:
            hit.score = scores[hit.id]
        return found

    def named(self, name: str) -> dict[int, str]:
        """The images with a file of this name, and its path: id → path.

        Args:
            name: a path below the images' folder, or the end of one, from a '/' on.
                Where no file has it as it is written, capitals do not matter, nor which
                of Unicode's forms spells an accent.
        """
        name = name.encode(errors="replace").decode()  # half characters are in none
        sql = (
            "SELECT path, picture FROM files "
            "WHERE substr('/' || {0}, -length(?1) - 1) = '/' || ?1 ORDER BY path"
        )
        found = self._all(sql.format("path"), (name,)) or self._all(
            sql.format("folded(path)"), (_folded(name),)
        )
        whole = [row for row in found if row[0] == name]  # before those in folders
        images: dict[int, str] = {}
        for path, id in whole or found:
            images.setdefault(id, path)
        return images

    def vector(self, id: int) -> Float32[np.ndarray, " D"] | None:
        """An image's vector; None where there is no such image."""
        return self.vectors([id]).get(id)

    def vectors(self, ids: Sequence[int]) -> dict[int, Float32[np.ndarray, " D"]]:
        """The vectors of images by id; without those that are not there any more."""
        sql = f"SELECT id, row FROM pictures WHERE {_BY_ID}"
        with self._moment() as facts:
            found = self._all(sql, {"ids": json.dumps(list(ids))})
            matrix = self._map(facts)
            return {id: np.array(matrix[row]) for id, row in found}

    def cameras(self) -> list[str]:
        """The cameras of the images, by name."""
        sql = (
            "SELECT DISTINCT camera FROM pictures "
            f"WHERE camera IS NOT NULL AND {_FOUND} ORDER BY camera"
        )
        return [row[0] for row in self._all(sql)]

    def dates(self) -> tuple[str | None, str | None]:
        """The first and the last day on which an image was taken, 'YYYY-MM-DD'."""
        sql = f"SELECT MIN(taken), MAX(taken) FROM pictures WHERE {_FOUND}"
        first, last = self._all(sql)[0]
        return (first and first[:10]), (last and last[:10])

    def folders(self) -> list[str]:
        """The folders with images in or below them, relative, by name."""
        paths = self._all("SELECT path FROM files")
        folders = {path.rpartition("/")[0] for (path,) in paths}
        above = {str(up) for folder in folders for up in PurePosixPath(folder).parents}
        return sorted((folders | above) - {"", "."})

    def matching(
        self, filters: Filters, of: Snapshot | None = None
    ) -> Int64[np.ndarray, " found"]:
        """Ids of the images that pass, ascending; `of`: None: of the index now there.

        Raises:
            InputError: a camera or a folder that no image has.
        """
        sql = f"SELECT id FROM pictures WHERE {filters.condition()} ORDER BY id"
        found = self._all(sql, vars(filters), of=of.connection if of else None)
        if not found:
            self.check_names(filters)
        return np.fromiter((row[0] for row in found), np.int64, len(found))

    def listed(
        self, filters: Filters, order: SortOrder, limit: int, offset: int = 0
    ) -> tuple[int, list[Hit]]:
        """How many images pass `filters`, and some of them, in an order.

        Those without a date come last in both orders by date.

        Raises:
            InputError: a camera or a folder that no image has.
        """
        where = filters.condition()
        values = vars(filters) | {"limit": limit, "offset": offset}
        [(total,)] = self._all(f"SELECT COUNT(*) FROM pictures WHERE {where}", values)
        if not total:
            self.check_names(filters)
        if filters.folder is not None:  # a copy elsewhere does not give its name
            where += f" AND {_IN_FOLDER}"
        found = self._all(
            "SELECT id, MIN(path) AS path FROM pictures JOIN files ON picture = id "
            f"WHERE {where} GROUP BY id ORDER BY {_ORDERS[order]} "
            "LIMIT :limit OFFSET :offset",
            values,
        )
        known = self.images([row["id"] for row in found], filters.folder)
        return total, [known[row["id"]] for row in found if row["id"] in known]

    def check_names(self, filters: Filters) -> None:
        """Raises InputError if no image has the camera or the folder asked for."""
        for field, known in (("camera", self.cameras()), ("folder", self.folders())):
            asked = getattr(filters, field)
            same = str.lower if field == "camera" else str
            if asked is not None and same(asked) not in map(same, known):
                some = ", ".join(known[:8]) or "none"
                more = ", …" if len(known) > 8 else ""
                raise InputError(
                    f"{field}: no image has {asked!r}; there is {some}{more}"
                )

    def snapshot(self, before: Snapshot | None = None) -> Snapshot:
        """All vectors and whose they are, of one moment.

        With an earlier one only what is new is read, unless something was removed.

        Raises:
            InputError: the vector file is not there or too short.
        """
        ids = rows = np.zeros(0, np.int64)
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
            new_ids, new_rows = np.ascontiguousarray(pairs.T)
            return Snapshot(
                uid=facts["uid"],
                version=facts["version"],
                matrix=self._map(facts),
                ids=np.concatenate([ids, new_ids]),
                rows=np.concatenate([rows, new_rows]),
                connection=self._connection,
            )

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
        """Id of the image with this content."""
        found = self._all("SELECT id FROM pictures WHERE sha256 = ?", (sha256,))
        return found[0][0] if found else None

    def add(
        self, images: Sequence[NewImage], vectors: Float32[np.ndarray, "N D"]
    ) -> None:
        """Adds images of new content: all of them, or, when killed, none."""
        facts = self._facts()
        rows = facts["rows"]
        path = self.index / facts["vectors"]
        with named_in_errors(path), path.open("ab") as file:
            file.truncate(rows * self.dim * 4)
            file.write(np.ascontiguousarray(vectors, np.float32).data)
            file.flush()
            os.fsync(file.fileno())
        with self._change() as execute:
            sql = "INSERT INTO pictures VALUES (NULL, ?, ?, ?, ?, ?, ?)"
            for row, new in enumerate(images, rows):
                execute(sql, (new.file.sha256, row, *new[1:]))
                _link(execute, new.file)
            execute("UPDATE facts SET rows = ?", (rows + len(images),))

    def link(self, files: Iterable[File]) -> None:
        """Adds files whose content the index has."""
        with self._change() as execute:
            for file in files:
                _link(execute, file)

    def forget(self, paths: Iterable[str]) -> None:
        """Removes files, and the images that have none any more."""
        with self._change() as execute:
            for path in paths:
                execute("DELETE FROM files WHERE path = ? AND raw = ?", _names(path))
            if execute(f"DELETE FROM pictures WHERE NOT {_FOUND}").rowcount:
                execute("UPDATE facts SET removed = version")

    def move(self, folder: Path) -> None:
        """Notes that the images' folder lies elsewhere now."""
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
        """Writes a new vector file without holes if most of its rows are holes.

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
            for first in range(0, len(now.rows), 4096):
                file.write(now.matrix[now.rows[first : first + 4096]].data)
            file.flush()
            os.fsync(file.fileno())
        with self._change() as execute:
            # Both ascend, so no row is taken by an image that is still to move.
            for row, id in enumerate(now.ids.tolist()):
                execute("UPDATE pictures SET row = ? WHERE id = ?", (row, id))
            facts = (name, len(now.rows))
            execute("UPDATE facts SET vectors = ?, rows = ?, removed = version", facts)


def _link(execute: Any, file: File) -> None:
    """Adds a file to the image with its content, if there is one."""
    sql = "INSERT OR REPLACE INTO files SELECT ?, ?, ?, ?, id FROM pictures"
    facts = (*_names(file.path), file.bytes, str(file.modified), file.sha256)
    execute(f"{sql} WHERE sha256 = ?", facts)


def _names(path: str) -> tuple[str, bytes]:
    """A file's path as people see it, and its bytes where they are others."""
    raw = os.fsencode(path)
    shown = printable(raw.decode(errors="surrogateescape"))
    return shown, b"" if shown.encode() == raw else raw


def _file(shown: str, raw: bytes) -> str:
    """The path as the system has it."""
    return os.fsdecode(raw or shown.encode())


def _folded(path: str) -> str:
    """Without capitals, and with one of Unicode's forms for an accent."""
    return unicodedata.normalize("NFC", path).casefold()


def _identity(index: Path) -> tuple[int, int]:
    """Tells the database from another one of its name, as long as it is open."""
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
    for name, function in (("sortable", _sortable), ("folded", _folded)):
        connection.create_function(name, 1, function, deterministic=True)
    return connection


def _sortable(path: str) -> str:
    """A file's name such that IMG_9.jpg comes before img_10.jpg."""
    name = path.rpartition("/")[2].casefold()
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name)


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
