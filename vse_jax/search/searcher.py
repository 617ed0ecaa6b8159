"""What a server does with a model and an index, without HTTP."""

import functools
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vse_jax.base.errors import InputError
from vse_jax.data.images import PictureBytes
from vse_jax.search.encoder import Encoder
from vse_jax.search.engine import Engine, Filters
from vse_jax.search.pictures import pixel_count, read_picture, thumbnail
from vse_jax.search.query import combine, parse
from vse_jax.search.store import Row, Store

THUMBNAIL = 320  # px, the longer side
_LARGE = 2048  # px; of a picture that is shown
_THUMBNAILS = 2000  # kept in memory, about 10 KB each
_UPLOADS = 64  # kept in memory
_CAPTIONS = 256  # whose vectors are kept: a new filter does not need the model again
_ROWS = 4096
# What browsers show, by how its files begin.
_SHOWN = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
)


class Refused(InputError):
    """Bad input with the HTTP status that says what kind."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Question:
    """What is looked for; its parts are added.

    query: see `query.parse`. A picture that it names is an upload: HEX.jpg.
    like, unlike: ids of pictures of the index.
    uploads: ids of uploads.
    """

    query: str = ""
    like: Sequence[int] = ()
    unlike: Sequence[int] = ()
    uploads: Sequence[str] = ()


@dataclass(frozen=True)
class Choice:
    """Which of the pictures found are wanted."""

    top: int = 60
    min_score: float | None = None
    filters: Filters = field(default_factory=Filters)


class Term(NamedTuple):
    """A part of a question."""

    weight: float
    vector: np.ndarray  # [D]
    sentence: str | None  # None: it is a picture


class Upload(NamedTuple):
    """A picture that is no part of the index."""

    vector: np.ndarray  # [D]
    thumbnail: bytes
    width: int  # px, upright
    height: int


class Content(NamedTuple):
    """What is sent of a picture."""

    data: bytes
    kind: str  # image/…


class Searcher:
    """A model, an index and the pictures of both. Safe to share by threads.

    Args:
        encoder: the model.
        store: index of pictures, made with this model.
        engine: searches it.
        max_pixels: of a picture; larger ones are not decoded.
    """

    def __init__(self, encoder: Encoder, store: Store, engine: Engine, max_pixels: int):
        self._encoder = encoder
        self._store = store
        self._engine = engine
        self._max_pixels = max_pixels
        self._guard = threading.Lock()
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._caption = functools.lru_cache(_CAPTIONS)(
            lambda sentence: encoder.encode_captions([sentence])[0]
        )
        # By version, too: a row changes when the index does.
        self._row = functools.lru_cache(_ROWS)(lambda id, version: store.picture(id))
        self._facts = functools.lru_cache(1)(self._facts_of)
        self._thumbnail = functools.lru_cache(_THUMBNAILS)(self._make_thumbnail)
        self.explains = False  # until `warm_up` has found out

    def warm_up(self) -> None:
        """Compiles what queries need, and finds out whether they can be explained."""
        self._encoder.warm_up()
        vector = self._encoder.encode_captions(["a picture"])[0]
        self._engine.search(vector, top=1, filters=Filters(), min_score=None)
        self.explains = bool(_words(self._encoder, "a picture", vector))

    # ---- What is known ---------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        return self._facts(self._store.version())

    def _facts_of(self, version: int) -> dict[str, Any]:
        first, last = self._store.dates()
        return {
            "pictures": self._store.count(),
            "folder": self._store.folder.name,
            "model": self._encoder.name,
            "explains": self.explains,
            "uploads": not self._encoder.takes_regions,
            "cameras": self._store.cameras(),
            "folders": self._store.folders(),
            "first": first and first[:10],
            "last": last and last[:10],
            "version": version,
        }

    def row(self, id: int) -> Row:
        """What is known of a picture.

        Raises:
            Refused: 404, there is none.
        """
        row = self._row(id, self._store.version())
        if row is None:
            raise Refused(404, f"{id}: no such picture")
        return row

    # ---- Search ----------------------------------------------------------------------

    def search(self, question: Question, choice: Choice) -> list[dict[str, Any]]:
        """The pictures found, best first.

        Raises:
            InputError: a question without words, or one that the grammar, an id or a
                filter makes impossible.
        """
        self._engine.refresh()
        vector, _ = self._combined(self._terms(question))
        hits = self._engine.search(
            vector, top=choice.top, filters=choice.filters, min_score=choice.min_score
        )
        version, found = self._store.version(), []
        for hit in hits:
            row = self._row(hit.id, version)
            if row is not None:  # it may have been removed this moment
                facts = {k: getattr(row, k) for k in ("width", "height", "taken")}
                facts |= {"camera": row.camera, "copies": len(row.copies)}
                score = round(float(hit.score), 6)
                found.append({"id": hit.id, "path": hit.path, "score": score, **facts})
        return found

    def _terms(self, question: Question) -> list[Term]:
        terms = []
        if question.query.strip() or not (
            question.like or question.unlike or question.uploads
        ):
            for part in parse(question.query):
                if part.kind == "sentence":
                    vector = self._caption(part.value)
                    terms.append(Term(part.weight, vector, part.value))
                else:
                    vector = self._named(part.value)
                    terms.append(Term(part.weight, vector, None))
        for weight, ids in ((1.0, question.like), (-1.0, question.unlike)):
            terms += [Term(weight, self._indexed(id), None) for id in ids]
        terms += [
            Term(1.0, self.upload(name).vector, None) for name in question.uploads
        ]
        return terms

    def _named(self, name: str) -> np.ndarray:
        found = self._uploads.get(name.rpartition(".")[0])
        if found is None:
            raise InputError(f"query: {name}: no such upload; name no files here")
        return found.vector

    def _indexed(self, id: int) -> np.ndarray:
        vector = self._store.vector(id)
        if vector is None:
            raise Refused(404, f"{id}: no such picture")
        return vector

    @staticmethod
    def _combined(terms: list[Term]) -> tuple[np.ndarray, list[float]]:
        return combine([t.weight for t in terms], [t.vector for t in terms])

    # ---- Why -------------------------------------------------------------------------

    def explain(self, question: Question, id: int) -> dict[str, Any]:
        """Splits the similarity of a picture and a question.

        Returns:
            similarity: of the two vectors; cells: [[…]] of the picture, their sum is
            the similarity; None where the picture's pooling is no sum; words: of the
            question's sentences. Together with what its pictures add, their sum is the
            similarity, too.

        Raises:
            InputError: as `search`.
        """
        terms = self._terms(question)
        vector, factors = self._combined(terms)
        image = self._indexed(id)
        words = []
        for term, factor in zip(terms, factors, strict=True):
            if term.sentence is not None:
                parts = _words(self._encoder, term.sentence, image)
                words += [{"word": w, "value": factor * value} for w, value in parts]
        return {
            "similarity": float(image @ vector),
            "cells": self._cells(id, vector),
            "words": words,
        }

    def _cells(self, id: int, vector: np.ndarray) -> list[list[float]] | None:
        if self._encoder.takes_regions:
            return None
        pixels = self._pixels(self.path(id))
        try:
            return self._encoder.split_image(pixels, vector).tolist()
        except InputError:  # the pooling is no sum
            return None

    # ---- Pictures --------------------------------------------------------------------

    def path(self, id: int) -> Path:
        """The file of a picture.

        Raises:
            Refused: 404, there is none, or it lies outside the folder of the index.
        """
        folder = self._store.folder.resolve()
        path = (folder / self.row(id).path).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise Refused(404, f"{id}: its file is not there any more")
        return path

    def _pixels(self, path: Path) -> np.ndarray:
        try:
            return read_picture(path, self._max_pixels).pixels
        except InputError as error:
            raise Refused(404, f"{path.name}: {_reason(error, path)}") from None

    def tag(self, id: int) -> str:
        """Changes when the file of a picture does.

        Raises:
            Refused: 404, there is none.
        """
        return _tag(self.path(id))

    def thumbnail(self, id: int) -> bytes:
        """WebP, at most `THUMBNAIL` px.

        Raises:
            Refused: 404, there is no such picture, or not any more.
        """
        path = self.path(id)
        return self._thumbnail(path, _tag(path))

    def _make_thumbnail(self, path: Path, tag: str) -> bytes:
        return thumbnail(self._pixels(path), THUMBNAIL)

    def picture(self, id: int, full: bool) -> Content:
        """A picture as browsers show it; at most `_LARGE` px unless `full`.

        Raises:
            Refused: 404, there is no such picture, or not any more.
        """
        path, row = self.path(id), self.row(id)
        with path.open("rb") as file:
            start = file.read(16)
        kind = next((kind for magic, kind in _SHOWN if start.startswith(magic)), None)
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            kind = "image/webp"
        if kind and (full or max(row.width, row.height) <= _LARGE):
            return Content(path.read_bytes(), kind)
        image = Image.fromarray(self._pixels(path))
        if not full:
            image.thumbnail((_LARGE, _LARGE), reducing_gap=2.0)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        return Content(content.getvalue(), "image/jpeg")

    # ---- Uploads ---------------------------------------------------------------------

    def add_upload(self, data: bytes) -> str:
        """Encodes a picture file's content; the last `_UPLOADS` are kept.

        Returns:
            Its id, 32 hexadecimal digits; equal content has the same one.

        Raises:
            Refused: 413, too many pixels; 415, no picture, or the model takes none.
        """
        if self._encoder.takes_regions:
            raise Refused(415, "this model takes region features, no pictures")
        id = hashlib.sha256(data).hexdigest()[:32]
        with self._guard:
            if id in self._uploads:
                self._uploads.move_to_end(id)
                return id
        pixels = self._uploaded(PictureBytes("the upload", data))
        vector = self._encoder.encode_images([pixels])[0]
        height, width = pixels.shape[:2]
        upload = Upload(vector, thumbnail(pixels, THUMBNAIL), width, height)
        with self._guard:
            self._uploads[id] = upload
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return id

    def _uploaded(self, picture: PictureBytes) -> np.ndarray:
        try:
            pixels = pixel_count(picture, np.iinfo(np.int64).max)
            if pixels <= self._max_pixels:
                return read_picture(picture, self._max_pixels).pixels
        except InputError as error:
            raise Refused(415, str(error)) from None
        raise Refused(413, f"{pixels:,} pixels; at most {self._max_pixels:,} are read")

    def upload(self, id: str) -> Upload:
        """One of the last uploads.

        Raises:
            Refused: 404, there is none.
        """
        found = self._uploads.get(id)
        if found is None:
            raise Refused(404, f"{id}: no such upload, or not kept any more")
        return found


def _words(encoder: Encoder, caption: str, vector: np.ndarray):
    """`split_caption`; nothing where the pooling is no sum."""
    try:
        return encoder.split_caption(caption, vector)
    except InputError:
        return []


def _tag(path: Path) -> str:
    status = path.stat()
    facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:32]


def _reason(error: InputError, path: Path) -> str:
    """Without the folder, which is nobody's business."""
    return str(error).removeprefix(f"{path}: ")
