"""What an index holds: images, their files, and the vectors of a model.

An image is its content: files with equal bytes are one image with several paths, and a
file whose content changes becomes another image. So an id always means the same pixels.
Ids grow and are never used twice.
"""

import datetime
import itertools
import json
import os
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from vse_jax import InputError, named_in_errors, printable
from vse_search.database import Database

# Until the end of an update, an image whose file has changed may have none.
_FOUND = "EXISTS (SELECT 1 FROM files WHERE files.picture = pictures.id)"
_BY_ID = "(SELECT value FROM json_each(?))"
SortOrder = Literal["newest", "oldest", "name"]
_ORDERS: dict[SortOrder, str] = {
    "newest": "taken IS NULL, taken DESC, path",
    "oldest": "taken IS NULL, taken, path",
    "name": "sortable(path), path",
}


@dataclass(frozen=True)
class Filters:
    """Which images may be found; None: any.

    Attributes:
        after, before: 'YYYY-MM-DD', the first and the last day on which an image may
            have been taken. One without a date passes neither.
        camera: as `Store.cameras` spells it; capitals do not matter.
        folder: relative to the images' folder, as `Store.folders` spells it; what lies
            in folders below it counts.

    Raises:
        InputError: a date that is none (names the field).
    """

    after: str | None = None
    before: str | None = None
    camera: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for field in ("after", "before"):
            day = getattr(self, field)
            if day is not None and not _is_day(day):
                raise InputError(f"{field}: {day!r} is no day of the form YYYY-MM-DD")
        folder = printable(self.folder or "").strip("/")
        object.__setattr__(self, "folder", None if folder in ("", ".") else folder)

    def condition(self) -> tuple[str, list[str]]:
        """In SQL, on `pictures`, and its values."""
        conditions, values = [_FOUND], []
        if self.after is not None:
            conditions.append("taken >= ?")
            values.append(self.after)
        if self.before is not None:
            conditions.append("taken <= ?")
            values.append(f"{self.before}T99")  # after any time of that day
        if self.camera is not None:
            conditions.append("camera = ? COLLATE NOCASE")
            values.append(self.camera)
        if self.folder is not None:
            conditions.append(
                "id IN (SELECT picture FROM files WHERE path > ? AND path < ?)"
            )
            values += _below(self.folder)
        return " AND ".join(conditions), values


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


ALL = Filters()  # every image passes


@dataclass(slots=True)
class Hit:
    """An image of an index, and the score with which a search found it.

    Attributes:
        path: of its file, the first one by name (in the folder that a filter names), as
            people see it: relative to the images' folder, with slashes, `printable`.
        file: the same path as the system has it.
        taken, camera: see `images.DecodedImage`.
        bytes: size of the file.
        copies: paths of the other files with the same content, as people see them.
        score: inner product of its vector and the query's; None: it was not searched.
    """

    id: int
    path: str
    file: str
    width: int
    height: int
    taken: str | None
    camera: str | None
    bytes: int
    copies: list[str]
    score: float | None = None


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
    """All vectors as of one version of the index.

    Attributes:
        uid: of the index.
        matrix: memory-mapped; some of its rows are no image's any more.
        ids: of the images, ascending. During an update some have no file any more.
        rows: which row of `matrix` is each image's, ascending, too.
        connection: to the database that tells of these ids. It can be read when another
            index has taken the place of this one, too.
    """

    uid: str
    version: int
    matrix: Float32[np.ndarray, "rows D"]
    ids: Int64[np.ndarray, " images"]
    rows: Int64[np.ndarray, " images"]
    connection: sqlite3.Connection


class Store(Database):
    """An open index. Only a `Snapshot` stays with the index that it is of."""

    # ---- Reading -------------------------------------------------------------------

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

        An index that is made anew in this folder has none of the earlier one's.
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
        values: list[str] = []
        if ids is not None:
            sql += f"WHERE id IN {_BY_ID} "
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
        images: dict[int, str] = {}
        for path, id in whole or found:
            images.setdefault(id, path)
        return images

    def vector(self, id: int) -> Float32[np.ndarray, " D"] | None:
        """An image's vector; None where there is no such image."""
        with self._moment() as facts:
            found = self._all("SELECT row FROM pictures WHERE id = ?", id)
            return np.array(self._map(facts)[found[0][0]]) if found else None

    def vectors(self, ids: Sequence[int]) -> Float32[np.ndarray, "N D"]:
        """The vectors of images; zeros where there is no such image (any more)."""
        found = np.zeros((len(ids), self.dim), np.float32)
        sql = f"SELECT id, row FROM pictures WHERE id IN {_BY_ID}"
        with self._moment() as facts:
            matrix = self._map(facts)
            rows = dict(map(tuple, self._all(sql, json.dumps(list(ids)))))
            for place, id in enumerate(ids):
                if id in rows:
                    found[place] = matrix[rows[id]]
        return found

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
        """Ids of the images that pass `filters`, ascending.

        Args:
            filters: what they must have.
            of: that the ids are to be of; None: the index that is there now.

        Raises:
            InputError: a camera or a folder that no image has.
        """
        where, values = filters.condition()
        sql = f"SELECT id FROM pictures WHERE {where} ORDER BY id"
        found = self._all(sql, *values, of=of.connection if of else None)
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
        where, values = filters.condition()
        [(total,)] = self._all(f"SELECT COUNT(*) FROM pictures WHERE {where}", *values)
        if not total:
            self.check_names(filters)
        if filters.folder is not None:  # a copy elsewhere does not give its name
            where += " AND path > ? AND path < ?"
            values += _below(filters.folder)
        found = self._all(
            "SELECT id, MIN(path) AS path FROM pictures JOIN files ON picture = id "
            f"WHERE {where} GROUP BY id ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?",
            *values,
            limit,
            offset,
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
        found = self._all("SELECT id FROM pictures WHERE sha256 = ?", sha256)
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
            for row, new in enumerate(images, rows):
                id = execute(
                    "INSERT INTO pictures VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                    (new.file.sha256, row, *new[1:]),
                ).lastrowid
                _add_file(execute, new.file, id)
            execute("UPDATE facts SET rows = ?", (rows + len(images),))

    def link(self, files: Iterable[File]) -> None:
        """Adds files whose content the index has."""
        with self._change() as execute:
            for file in files:
                sql = "SELECT id FROM pictures WHERE sha256 = ?"
                for (id,) in execute(sql, (file.sha256,)).fetchall():
                    _add_file(execute, file, id)

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


def _add_file(execute: Any, file: File, image: int) -> None:
    facts = (*_names(file.path), file.bytes, str(file.modified), image)
    execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", facts)


def _names(path: str) -> tuple[str, bytes]:
    """A file's path as people see it, and its bytes where they are others."""
    raw = os.fsencode(path)
    shown = printable(raw.decode(errors="surrogateescape"))
    return shown, b"" if shown.encode() == raw else raw


def _file(shown: str, raw: bytes) -> str:
    """The path as the system has it."""
    return os.fsdecode(raw or shown.encode())


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _below(folder: str) -> tuple[str, str]:
    """What is greater and less than these starts with 'folder/': '0' follows '/'."""
    return f"{folder}/", f"{folder}0"
