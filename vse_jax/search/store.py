"""An index on disk: what is known of pictures in SQLite, vectors in a file beside it.

    <index>/index.sqlite    pictures (one row a content), files (one row a path), facts
    <index>/vectors-N.f32   float32 [rows, D] and nothing else; picture.row says which
    <index>/lock            held by the process that writes

A picture is its content: files with equal bytes are one picture with several paths, and
a file whose content changes becomes another picture. So an id always means the same
pixels. Ids grow and are never used twice.

Vectors are on the disk before the transaction that tells of them; what a killed process
left behind the last row that is told of is overwritten by the next one.
"""

import contextlib
import fcntl
import itertools
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int64

from vse_jax.base.errors import InputError
from vse_jax.base.files import named_in_errors
from vse_jax.search.engine import Filters

DATABASE = "index.sqlite"
_LAYOUT = 1  # of the database and the vector files
_SCHEMA = """
CREATE TABLE facts (
  layout INTEGER NOT NULL, uid TEXT NOT NULL,
  model TEXT NOT NULL, model_name TEXT NOT NULL,
  dim INTEGER NOT NULL, folder TEXT NOT NULL,
  version INTEGER NOT NULL,      -- grows with each transaction
  removed INTEGER NOT NULL,      -- the version that last took or moved a row
  vectors TEXT NOT NULL,         -- name of the file
  rows INTEGER NOT NULL          -- in it; pictures that were removed leave holes
);
CREATE TABLE pictures (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sha256 TEXT NOT NULL UNIQUE, row INTEGER NOT NULL UNIQUE,
  width INTEGER NOT NULL, height INTEGER NOT NULL, taken TEXT, camera TEXT
);
CREATE TABLE files (
  path TEXT PRIMARY KEY,         -- relative, with slashes
  bytes INTEGER NOT NULL, modified INTEGER NOT NULL,   -- nanoseconds
  picture INTEGER NOT NULL REFERENCES pictures (id)
) WITHOUT ROWID;
CREATE INDEX files_of_picture ON files (picture);
"""
# Until the end of an update, a picture whose file has changed may have none.
_FOUND = "EXISTS (SELECT 1 FROM files WHERE files.picture = pictures.id)"


@dataclass(frozen=True)
class Row:
    """What is known of a picture.

    Attributes:
        path: of its file, the first one by name; relative to the pictures' folder.
        taken, camera: see `pictures.Picture`.
        bytes: size of the file.
        copies: paths of the other files with the same content.
    """

    id: int
    path: str
    width: int
    height: int
    taken: str | None
    camera: str | None
    bytes: int
    copies: list[str]


class File(NamedTuple):
    """A picture file as it was when it was read."""

    path: str
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
        matrix: memory-mapped; some of its rows are no picture's any more.
        ids: of the pictures, ascending. During an update some have no file any more.
        rows: which row of `matrix` is each picture's, ascending, too.
    """

    version: int
    matrix: Float32[np.ndarray, "rows D"]
    ids: Int64[np.ndarray, " pictures"]
    rows: Int64[np.ndarray, " pictures"]


class Store:
    """An open index. Safe to share by threads; one process at a time may write.

    Attributes:
        index: its folder.
        uid: no other index has it, not even one made anew in this folder.
        model: fingerprint of the model that made the vectors; `model_name`: for people.
        dim: D, the size of a vector.
        folder: of the pictures, absolute.
    """

    def __init__(self, index: Path, connection: sqlite3.Connection) -> None:
        self.index = index
        self._connection = connection
        self._guard = threading.RLock()
        facts = self._facts()
        self.uid: str = facts["uid"]
        self.model: str = facts["model"]
        self.model_name: str = facts["model_name"]
        self.dim: int = facts["dim"]
        self.folder = Path(facts["folder"])

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
        try:
            with (
                _clear_errors(index),
                contextlib.closing(sqlite3.connect(temporary)) as connection,
            ):
                connection.executescript(_SCHEMA)
                connection.execute(
                    "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, 0)",
                    (
                        *(_LAYOUT, uid, model, name, dim),
                        *(str(folder.resolve()), "vectors-1.f32"),
                    ),
                )
                connection.commit()
                connection.execute("PRAGMA journal_mode = WAL")
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
        if not cls.exists(index):
            raise InputError(f"{index}: no index; make one with --mode=index")
        with contextlib.ExitStack() as stack:
            if not read_only:
                stack.enter_context(_writer_lock(index))
            with _clear_errors(index):
                mode = "ro" if read_only else "rw"
                connection = sqlite3.connect(
                    f"{(index / DATABASE).resolve().as_uri()}?mode={mode}",
                    uri=True,
                    isolation_level=None,
                    check_same_thread=False,
                    timeout=30.0,
                )
                stack.callback(connection.close)
                connection.row_factory = sqlite3.Row
                store = cls(index, connection)
                if not read_only:
                    store._prepare_writing()
                with store._moment() as facts:
                    store._map(facts)  # finds a vector file that is too short
            yield store

    def _prepare_writing(self) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        [(verdict,)] = self._all("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _broken(self.index, DATABASE, verdict)
        current = self._facts()["vectors"]
        for path in self.index.glob("vectors-*.f32"):
            if path.name != current:
                path.unlink(missing_ok=True)

    def _facts(self) -> sqlite3.Row:
        """The index's facts.

        Raises:
            InputError: it is broken, or of another version.
        """
        found = self._all("SELECT * FROM facts")
        if len(found) != 1:
            raise _broken(self.index, DATABASE, "holds no facts")
        if found[0]["layout"] != _LAYOUT:
            raise InputError(
                f"{self.index}: index of another version of this program "
                f"(layout {found[0]['layout']}, not {_LAYOUT}); {_rebuild(self.index)}"
            )
        return found[0]

    # ---- Reading -------------------------------------------------------------------

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._guard, _clear_errors(self.index):
            return self._connection.execute(sql, values).fetchall()

    def version(self) -> int:
        """A number that grows with every change of the index."""
        return self._facts()["version"]

    def count(self) -> int:
        """Pictures that can be found; files with equal content count once."""
        return self._all(f"SELECT COUNT(*) FROM pictures WHERE {_FOUND}")[0][0]

    def picture(self, id: int) -> Row | None:
        """What is known of a picture; None where there is none (any more)."""
        return next(self._rows("WHERE id = ?", id), None)

    def pictures(self) -> Iterator[Row]:
        """What is known of every picture, by id."""
        return self._rows("")

    def _rows(self, where: str, *values: Any) -> Iterator[Row]:
        columns = "id, path, width, height, taken, camera, bytes"
        sql = f"SELECT {columns} FROM pictures JOIN files ON picture = id {where}"
        files = self._all(f"{sql} ORDER BY id, path", *values)
        for _, same in itertools.groupby(files, key=lambda file: file["id"]):
            first, *others = same
            yield Row(**dict(first), copies=[other["path"] for other in others])

    def _files_of(self, id: int) -> list[sqlite3.Row]:
        return self._all("SELECT path FROM files WHERE picture = ? ORDER BY path", id)

    def path(self, id: int, folder: str | None = None) -> str | None:
        """Of a picture's file, the first one by name; one in `folder`, where told."""
        for file in self._files_of(id):
            if folder is None or file["path"].startswith(f"{folder}/"):
                return file["path"]
        return None

    def copies(self, id: int) -> list[str]:
        """Paths of the other files that have the same content as a picture's first."""
        return [file["path"] for file in self._files_of(id)[1:]]

    def vector(self, id: int) -> Float32[np.ndarray, " D"] | None:
        """A picture's vector; None where there is no such picture."""
        with self._moment() as facts:
            found = self._all("SELECT row FROM pictures WHERE id = ?", id)
            return np.array(self._map(facts)[found[0][0]]) if found else None

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

    def matching(self, filters: Filters) -> Int64[np.ndarray, " found"]:
        """Ids of the pictures that pass `filters`, ascending.

        Raises:
            InputError: a camera or a folder that no picture has.
        """
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
            # All paths that start with 'folder/': '0' follows '/' in ASCII.
            conditions.append(
                "id IN (SELECT picture FROM files WHERE path > ? AND path < ?)"
            )
            values += [f"{filters.folder}/", f"{filters.folder}0"]
        where = " AND ".join(conditions)
        found = self._all(f"SELECT id FROM pictures WHERE {where} ORDER BY id", *values)
        if not found:
            self.check_names(filters)
        return np.fromiter((row[0] for row in found), np.int64, len(found))

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
            if before is not None and facts["removed"] <= before.version:
                ids, rows = before.ids, before.rows
            cursor = self._connection.cursor()
            cursor.row_factory = None
            last = int(ids[-1]) if len(ids) else 0
            sql = "SELECT id, row FROM pictures WHERE id > ? ORDER BY id"
            pairs = np.fromiter(cursor.execute(sql, (last,)), np.dtype((np.int64, 2)))
            matrix = self._map(facts)
        new_ids, new_rows = np.ascontiguousarray(pairs.T)
        return Snapshot(
            version=facts["version"],
            matrix=matrix,
            ids=np.concatenate([ids, new_ids]),
            rows=np.concatenate([rows, new_rows]),
        )

    @contextlib.contextmanager
    def _moment(self) -> Iterator[sqlite3.Row]:
        """What is read inside is of one version; gives its facts.

        The file that they name is there until the end, but no longer: a writer that
        replaces it by a compact one waits for no reader after its transaction.
        """
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
            raise _broken(self.index, name, str(error)) from None

    # ---- Writing -------------------------------------------------------------------

    def files(self) -> dict[str, File]:
        """The files of the index by path."""
        sql = (
            "SELECT path, bytes, modified, sha256 FROM files "
            "JOIN pictures ON pictures.id = picture"
        )
        return {row[0]: File(*row) for row in self._all(sql)}

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
                execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                    (*new.file[:3], id),
                )
            execute("UPDATE facts SET rows = ?", (rows + len(pictures),))

    def link(self, files: Iterable[File]) -> None:
        """Notes files whose content the index has."""
        with self._change() as execute:
            for file in files:
                execute(
                    "INSERT OR REPLACE INTO files "
                    "SELECT ?, ?, ?, id FROM pictures WHERE sha256 = ?",
                    file,
                )

    def forget(self, paths: Iterable[str]) -> None:
        """Removes files, and the pictures that have none any more."""
        with self._change() as execute:
            for path in paths:
                execute("DELETE FROM files WHERE path = ?", (path,))
            if execute(f"DELETE FROM pictures WHERE NOT {_FOUND}").rowcount:
                execute("UPDATE facts SET removed = version + 1")

    def move(self, folder: Path) -> None:
        """Notes that the pictures' folder lies elsewhere now."""
        with self._change() as execute:
            execute("UPDATE facts SET folder = ?", (str(folder),))
        self.folder = folder

    def compact(self) -> None:
        """Writes the vector file anew without holes if most of its rows are holes."""
        now = self.snapshot()
        if len(now.matrix) <= 2 * len(now.rows) + 1000:
            return
        old = self._facts()["vectors"]
        name = f"vectors-{int(old[8:-4]) + 1}.f32"
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
            execute(
                "UPDATE facts SET vectors = ?, rows = ?, removed = version + 1", facts
            )
        (self.index / old).unlink()  # whoever has it mapped keeps it until then

    @contextlib.contextmanager
    def _change(self) -> Iterator[Any]:
        """A transaction that gives the index its next version."""
        with (
            self._guard,
            _clear_errors(self.index),
            self._transaction("BEGIN IMMEDIATE"),
        ):
            yield self._connection.execute
            self._connection.execute("UPDATE facts SET version = version + 1")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it itself at a full disk
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


@contextlib.contextmanager
def _writer_lock(index: Path) -> Iterator[None]:
    """The system lets go of it when the process ends, however it does."""
    with (index / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{index}: another process ({file.read().strip()}) writes to this "
                "index; wait for its end"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _clear_errors(index: Path) -> Iterator[None]:
    """SQLite's errors as one line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # A full disk, a lock, … may pass; what has no tables never was whole.
        passes = isinstance(error, sqlite3.OperationalError)
        if passes and not str(error).startswith("no such"):
            raise InputError(f"{index / DATABASE}: {error}") from None
        raise _broken(index, DATABASE, str(error)) from None


def _broken(index: Path, name: str, reason: str) -> InputError:
    return InputError(f"{index / name}: broken index ({reason}); {_rebuild(index)}")


def _rebuild(index: Path) -> str:
    return f"remove the folder {index} and run --mode=index again"
