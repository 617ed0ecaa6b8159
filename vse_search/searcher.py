"""What a server does with a model and an index, without HTTP."""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vse_jax import InputError, printable
from vse_search.engine import Filters, Row
from vse_search.gallery import THUMBNAIL, Gallery, Refused
from vse_search.opening import Opened
from vse_search.pictures import thumbnail
from vse_search.query import combine, parse
from vse_search.stacks import stacks
from vse_search.store import Order

T = TypeVar("T")

_UPLOADS = 64  # kept in memory
_CAPTIONS = 256  # whose vectors are kept: a new filter does not need the model again


@dataclass(frozen=True)
class Question:
    """What is looked for; its parts are added.

    query: see `query.parse`. A picture that it names is an upload, HEX.jpg, or one of
        the index: by its path, or by the last part of it.
    like, unlike: ids of pictures of the index.
    uploads: ids of uploads.
    """

    query: str = ""
    like: Sequence[int] = ()
    unlike: Sequence[int] = ()
    uploads: Sequence[str] = ()

    def is_empty(self) -> bool:
        """Whether nothing is looked for."""
        return not (self.query.strip() or self.like or self.unlike or self.uploads)


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


class Searcher:
    """Answers questions with the pictures of an index. Safe to share by threads.

    Args:
        opened: a model, an index that it made and its engine.
        gallery: the pictures of this index.
    """

    def __init__(self, opened: Opened, gallery: Gallery):
        self._encoder, self._store, self._engine = opened
        self._gallery = gallery
        # Of the index that the engine has.
        self._uid, self._version = "", -1
        self._refreshing = threading.Lock()
        self._guard = threading.Lock()
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._caption = functools.lru_cache(_CAPTIONS)(self._encoded)
        self._facts = functools.lru_cache(1)(self._facts_of)
        self.explains = False  # until `warm_up` has found out

    def warm_up(self) -> None:
        """Compiles what queries need, and finds out whether they can be explained."""
        self._encoder.warm_up()
        # No caption: a vocabulary need not hold the words of any that stands here.
        vector = np.full(self._encoder.dim, self._encoder.dim**-0.5, np.float32)
        self._engine.search(vector, top=1, filters=Filters(), min_score=None)
        grey = np.full((32, 32, 3), 128, np.uint8)
        self.explains = bool(self._words("", vector) or self._cells(grey, vector))

    # ---- What is known ---------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        return self._facts(self._store.version())

    def _facts_of(self, version: int) -> dict[str, Any]:
        first, last = self._store.dates()
        return {
            "pictures": self._store.count(),
            "folder": printable(self._store.folder.name),
            "model": printable(self._encoder.name),
            "trained_on": self._encoder.trained_on,
            "explains": self.explains,
            "uploads": not self._encoder.takes_regions,
            "cameras": self._store.cameras(),
            "folders": self._store.folders(),
            "first": first and first[:10],
            "last": last and last[:10],
            "version": version,
        }

    # ---- Search ----------------------------------------------------------------------

    def search(
        self, question: Question, choice: Choice, *, stacked: bool = False
    ) -> dict[str, Any]:
        """The pictures found.

        Returns:
            hits, best first; total: None; if `stacked`, which compares each hit with
            each other one, stacks: lists of their ids that are nearly equal.

        Raises:
            InputError: a question without words, or one that the grammar, an id or a
                filter makes impossible.
        """

        def found() -> dict[str, Any]:
            self._take_in_changes()
            vector, _ = self._combined(self._terms(question))
            hits = self._engine.search(
                vector,
                top=choice.top,
                filters=choice.filters,
                min_score=choice.min_score,
            )
            described = [_described(hit.row, hit.score) for hit in hits]
            answer: dict[str, Any] = {"hits": described, "total": None}
            if stacked:
                answer["stacks"] = self._stacks(described, neighbours=False)
            return answer

        return self._of_one_index(found)

    def browse(self, choice: Choice, order: Order, offset: int) -> dict[str, Any]:
        """The pictures that pass the filters, without a question.

        Returns:
            hits, without scores; stacks; total: how many pass, shown or not.

        Raises:
            InputError: a camera or a folder that no picture has.
        """

        def found() -> dict[str, Any]:
            filters = choice.filters
            total, rows = self._store.listed(filters, order, choice.top, offset)
            hits = [_described(row, None) for row in rows]
            # A like one of another day, or in another folder, stands where it belongs.
            alike = self._stacks(hits, neighbours=True)
            return {"hits": hits, "stacks": alike, "total": total}

        return self._of_one_index(found)

    def _stacks(self, hits: list[dict[str, Any]], neighbours: bool) -> list[list[int]]:
        """Ids of those that are nearly equal; see `stacks.stacks`."""
        ratios = np.array([hit["width"] / hit["height"] for hit in hits])
        vectors = self._store.vectors([hit["id"] for hit in hits])
        found = stacks(vectors, ratios, neighbours=neighbours)
        return [[hits[place]["id"] for place in stack] for stack in found]

    def _of_one_index(self, find: Callable[[], T]) -> T:
        """What `find` gives; once more where meanwhile another index, in which ids mean
        other pictures, was put into the place of the one that it began with."""
        uid = self._store.uid
        try:
            found = find()
        except InputError:
            if self._store.uid == uid:
                raise
        else:
            if self._store.uid == uid:
                return found
        return find()

    def _take_in_changes(self) -> None:
        """Of the index. It may take an engine minutes; meanwhile others search what it
        had before, unless that was another index."""
        uid, version = self._store.uid, self._store.version()
        if version == self._version:
            return
        if not self._refreshing.acquire(blocking=uid != self._uid):
            return
        try:
            if version != self._version:
                self._engine.refresh()
                self._uid, self._version = uid, version
        finally:
            self._refreshing.release()

    def _terms(self, question: Question) -> list[Term]:
        terms = []
        if question.query.strip() or question.is_empty():
            for part in parse(question.query, lambda name: bool(self._ids(name))):
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

    def _encoded(self, sentence: str) -> np.ndarray:
        try:
            return self._encoder.encode_captions([sentence])[0]
        except InputError:  # its text names files, and the model's owner alone has them
            raise InputError(
                f"query: the model knows no word of {sentence[:60]!r}"
            ) from None

    def _named(self, name: str) -> np.ndarray:
        """The vector of an upload or of a picture of the index."""
        upload = self._uploads.get(name.rpartition(".")[0])
        if upload is not None:
            return upload.vector
        found = self._ids(name)
        if not found:
            raise InputError(f"query: {name}: no picture of the index has this name")
        if len(found) > 1:
            some = ", ".join(list(found.values())[:3])
            more = ", …" if len(found) > 3 else ""
            raise InputError(
                f"query: {name}: {len(found):,} pictures have this name: {some}{more}; "
                "write which"
            )
        return self._indexed(next(iter(found)))

    def _ids(self, name: str) -> dict[int, str]:
        return self._store.named(name)

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
        return self._of_one_index(lambda: self._explanation(question, id))

    def _explanation(self, question: Question, id: int) -> dict[str, Any]:
        terms = self._terms(question)
        vector, factors = self._combined(terms)
        image = self._indexed(id)
        words = []
        for term, factor in zip(terms, factors, strict=True):
            if term.sentence is not None:
                parts = self._words(term.sentence, image)
                words += [{"word": w, "value": factor * value} for w, value in parts]
        cells = None
        if not self._encoder.takes_regions:
            cells = self._cells(self._gallery.pixels(id), vector)
        return {"similarity": float(image @ vector), "cells": cells, "words": words}

    def _cells(self, pixels: np.ndarray, vector: np.ndarray) -> list | None:
        try:
            return self._encoder.image_attributions(pixels, vector).tolist()
        except InputError:  # the pooling is no sum
            return None

    def _words(self, caption: str, vector: np.ndarray) -> list[tuple[str, float]]:
        try:
            return self._encoder.caption_attributions(caption, vector)
        except InputError:  # the pooling is no sum
            return []

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
        pixels = self._gallery.uploaded(data)
        vector = self._encoder.encode_images([pixels])[0]
        height, width = pixels.shape[:2]
        upload = Upload(vector, thumbnail(pixels, THUMBNAIL), width, height)
        with self._guard:
            self._uploads[id] = upload
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return id

    def upload(self, id: str) -> Upload:
        """One of the last uploads.

        Raises:
            Refused: 404, there is none.
        """
        found = self._uploads.get(id)
        if found is None:
            raise Refused(404, f"{id}: no such upload, or not kept any more")
        return found


def _described(row: Row, score: float | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "path": row.path,
        "score": None if score is None else round(float(score), 6),
        "width": row.width,
        "height": row.height,
        "taken": row.taken,
        "camera": row.camera,
        "copies": len(row.copies),
    }
