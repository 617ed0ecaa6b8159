"""Answers queries with the images of an index, for the server and the command line."""

import contextlib
import functools
import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float32

from vse_jax import ImageBytes, InputError, SearchConfig, opened, printable
from vse_search.encoder import Encoder
from vse_search.engines import make_engine
from vse_search.images import FORMATS, read_image, thumbnail
from vse_search.indexing import check_model
from vse_search.query import combine, parse
from vse_search.store import ALL, Filters, Hit, SortOrder, Store

T = TypeVar("T")

THUMBNAIL = 320  # px, the longer side
# Cosine of two images' vectors, at least: docs/search.md says what it stacks.
LEAST_COSINE = 0.99
# A model sees every image as a square: its shape tells it nothing.
_MOST_DIFFERENCE = 0.02  # of the logarithms of two ratios of width to height
_UPLOADS = 64  # kept in memory
_CAPTIONS = 256  # whose vectors are kept: a new filter does not need the model again


class HTTPError(InputError):
    """Bad input with the HTTP status that says what kind."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Query:
    """What is looked for, the sum of its parts, and which of the images found.

    An image that `query` (see `query.parse`) names is an upload, HEX.jpg, or one of the
    index: by its path, or by the last part of it.
    """

    query: str = ""
    like: Sequence[int] = ()  # ids of images of the index
    unlike: Sequence[int] = ()
    uploads: Sequence[str] = ()  # ids
    top: int = 60
    min_score: float | None = None  # None: the model's own cut-off
    filters: Filters = ALL

    def is_empty(self) -> bool:
        """Whether no part is given."""
        return not (self.query.strip() or self.like or self.unlike or self.uploads)


class Found(NamedTuple):
    """Images, best first.

    cutoff: the score below which the model takes none for what is looked for; None: it
        has none for such a query.
    """

    hits: list[Hit]
    cutoff: float | None


class Upload(NamedTuple):
    """An image that is no part of the index."""

    vector: Float32[np.ndarray, " D"]
    thumbnail: bytes
    width: int  # px, upright
    height: int


@dataclass(frozen=True)
class Status:
    """What the page shows before anything is asked."""

    pictures: int
    folder: str
    model: str
    trained_on: str | None
    languages: Sequence[str]
    explains: bool
    uploads: bool
    cameras: list[str]
    folders: list[str]
    first: str | None
    last: str | None
    version: int


@dataclass(frozen=True)
class Word:
    word: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """A similarity, split."""

    similarity: float  # of the image's and the query's vectors
    # Of the image; their sum is the similarity. None: it cannot be split.
    cells: list[list[float]] | None
    # Of the query's captions; with what its images add, their sum is the similarity.
    words: list[Word]
    # As of `Encoder`: 'integrated gradients' sum to the similarity within 1e-2 of it.
    cells_method: str | None
    words_method: str | None


class Searcher:
    """Searches an index by the model that made it. Safe to share by threads."""

    def __init__(self, encoder: Encoder, store: Store, options: SearchConfig):
        self.store = store
        self._encoder = encoder
        self._engine = make_engine(store, options.engine, options.url)
        self._max_pixels: int = options.max_pixels
        # Of the index that the engine has.
        self._uid, self._version = "", -1
        self._refreshing = threading.Lock()
        self._guard = threading.Lock()
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._caption = functools.lru_cache(_CAPTIONS)(self._encoded)
        self._status = functools.lru_cache(1)(self._status_of)
        self.explains = False  # until `warm_up` has found out

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, options: SearchConfig, index: Path, load: Callable[[], Encoder]
    ) -> Iterator["Searcher"]:
        """Opens an index to read; `load` gives its model once it was found to be whole.

        Raises:
            InputError: no index, a broken one, one of another model, or no engine.
        """
        with Store.open(index, read_only=True) as store:
            encoder = load()
            check_model(store, encoder)
            yield cls(encoder, store, options)

    def warm_up(self) -> None:
        """Compiles what queries need, and finds out whether they can be explained."""
        self._encoder.warm_up()
        # No caption: a vocabulary need not hold the words of any that stands here.
        vector = np.full(self._encoder.dim, self._encoder.dim**-0.5, np.float32)
        self._engine.search(vector, top=1)
        gray = np.full((32, 32, 3), 128, np.uint8)
        self.explains = bool(self._words("", vector) or self._cells(gray, vector))

    # ---- What is known ---------------------------------------------------------------

    def status(self) -> Status:
        """What is known of the index and the model."""
        return self._status(self.store.version())

    def _status_of(self, version: int) -> Status:
        first, last = self.store.dates()
        return Status(
            pictures=self.store.count(),
            folder=printable(self.store.folder.name),
            model=printable(self._encoder.name),
            trained_on=self._encoder.trained_on,
            languages=self._encoder.languages,
            explains=self.explains,
            uploads=not self._encoder.takes_regions,
            cameras=self.store.cameras(),
            folders=self.store.folders(),
            first=first,
            last=last,
            version=version,
        )

    def image(self, id: int) -> Hit:
        """What is known of an image; raises HTTPError 404 if there is none."""
        image = self.store.image(id)
        if image is None:
            raise HTTPError(404, f"{id}: no such image")
        return image

    def file(self, image: Hit) -> Path:
        """Its file, without symbolic links, inside the index's folder; else, 404."""
        folder = self.store.folder.resolve()
        path = (folder / image.file).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise HTTPError(404, f"{image.id}: its file is not there any more")
        return path

    # ---- Search ----------------------------------------------------------------------

    def search(self, query: Query) -> Found:
        """The images found; those below `query.min_score` or the cut-off left out.

        Raises:
            InputError: a query without words, or one that the grammar, an id or a
                filter makes impossible.
        """
        return self._of_one_index(lambda: self._found(query))

    def _found(self, query: Query) -> Found:
        self._take_in_changes()
        weights, vectors, captions = zip(*self._terms(query), strict=True)
        vector, _ = combine(weights, vectors)
        # Similarities to images, or to what is taken away, are of another range.
        is_caption = len(captions) == 1 and captions[0] is not None and weights[0] > 0
        cutoff = self._encoder.cutoff if is_caption else None
        hits = self._engine.search(
            vector,
            top=query.top,
            filters=query.filters,
            min_score=cutoff if query.min_score is None else query.min_score,
        )
        return Found(hits, cutoff)

    def page(
        self, query: Query, order: SortOrder | None = None, offset: int = 0
    ) -> dict[str, Any]:
        """As `search`, or all images that pass the filters in an order.

        Returns:
            hits and cutoff, as `Found`; stacks: lists of ids of those that are nearly
            equal, for which each is compared with each other one; total: with an order,
            how many images pass.

        Raises:
            InputError: as `search`, or an order of a query.
        """
        if order is not None and not query.is_empty():
            raise InputError("order: only where nothing is looked for")

        def found() -> dict[str, Any]:
            total = cutoff = None
            if order is None:
                hits, cutoff = self._found(query)
            else:
                total, hits = self.store.listed(query.filters, order, query.top, offset)
            ratios = np.array([hit.width / hit.height for hit in hits])
            known = self.store.vectors([hit.id for hit in hits])
            gone = np.zeros(self.store.dim, np.float32)
            vectors = np.array([known.get(hit.id, gone) for hit in hits], np.float32)
            vectors = vectors.reshape(-1, self.store.dim)
            # In an order, an equal one of another day or folder stays where it belongs.
            places = stacks(vectors, ratios, neighbors=order is not None)
            ids = [[hits[place].id for place in stack] for stack in places]
            return {"hits": hits, "cutoff": cutoff, "stacks": ids, "total": total}

        return self._of_one_index(found)

    def _of_one_index(self, find: Callable[[], T]) -> T:
        """What `find` gives; once more if meanwhile another index, in which ids mean
        other images, has taken the place of the one that it began with."""
        uid = self.store.uid
        try:
            found = find()
        except InputError:
            if self.store.uid == uid:
                raise
        else:
            if self.store.uid == uid:
                return found
        return find()

    def _take_in_changes(self) -> None:
        """It may take an engine minutes; meanwhile other threads search what it had
        before, unless that was another index."""
        uid, version = self.store.uid, self.store.version()
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

    def _terms(self, query: Query) -> list[tuple[float, np.ndarray, str | None]]:
        """Weights, vectors and, where they are captions, texts of a query's parts."""
        terms: list[tuple[float, np.ndarray, str | None]] = []
        if query.query.strip() or query.is_empty():
            for part in parse(query.query, lambda name: bool(self.store.named(name))):
                if part.kind == "caption":
                    vector = self._caption(part.value)
                    terms.append((part.weight, vector, part.value))
                else:
                    terms.append((part.weight, self._named(part.value), None))
        for weight, ids in ((1.0, query.like), (-1.0, query.unlike)):
            terms += [(weight, self._vector(id), None) for id in ids]
        return terms + [(1.0, self.upload(id).vector, None) for id in query.uploads]

    def _encoded(self, caption: str) -> Float32[np.ndarray, " D"]:
        try:
            return self._encoder.encode_captions([caption])[0]
        except InputError:  # its text names files, and the model's owner alone has them
            raise InputError(
                f"query: the model knows no word of {caption[:60]!r}"
            ) from None

    def _named(self, name: str) -> Float32[np.ndarray, " D"]:
        """The vector of an upload or of an image of the index."""
        upload = self._uploads.get(name.rpartition(".")[0])
        if upload is not None:
            return upload.vector
        found = self.store.named(name)
        if not found:
            raise InputError(f"query: {name}: no image of the index has this name")
        if len(found) > 1:
            some = ", ".join(list(found.values())[:3])
            more = ", …" if len(found) > 3 else ""
            raise InputError(
                f"query: {name}: {len(found):,} images have this name: {some}{more}; "
                "write which"
            )
        return self._vector(next(iter(found)))

    def _vector(self, id: int) -> Float32[np.ndarray, " D"]:
        vector = self.store.vector(id)
        if vector is None:
            raise HTTPError(404, f"{id}: no such image")
        return vector

    # ---- Why -------------------------------------------------------------------------

    def explain(self, query: Query, id: int) -> Explanation:
        """Splits the similarity of an image and a query; raises as `search`."""

        def explanation() -> Explanation:
            terms = self._terms(query)
            weights, vectors, captions = zip(*terms, strict=True)
            vector, factors = combine(weights, vectors)
            image = self._vector(id)
            words = [
                Word(word, factor * value)
                for caption, factor in zip(captions, factors, strict=True)
                if caption is not None
                for word, value in self._words(caption, image)
            ]
            cells = None
            if not self._encoder.takes_regions:
                path = self.file(self.image(id))
                with bad_is_missing(path):
                    pixels = read_image(path, self._max_pixels).pixels
                cells = self._cells(pixels, vector)
            return Explanation(
                float(image @ vector),
                cells,
                words,
                self._encoder.cells_method,
                self._encoder.words_method,
            )

        return self._of_one_index(explanation)

    def _cells(self, pixels: np.ndarray, vector: np.ndarray) -> list | None:
        try:
            return self._encoder.image_attributions(pixels, vector).tolist()
        except InputError:  # it cannot be split
            return None

    def _words(self, caption: str, vector: np.ndarray) -> list[tuple[str, float]]:
        try:
            return self._encoder.caption_attributions(caption, vector)
        except InputError:  # it cannot be split
            return []

    # ---- Uploads ---------------------------------------------------------------------

    def add_upload(self, data: bytes) -> str:
        """Encodes an image file's content; the last `_UPLOADS` are kept.

        Its id is 32 hexadecimal digits; equal content has the same one.

        Raises:
            HTTPError: 413, too many pixels; 415, no image, or the model takes none.
        """
        if self._encoder.takes_regions:
            raise HTTPError(415, "this model takes region features, no images")
        id = hashlib.sha256(data).hexdigest()[:32]
        with self._guard:
            if id in self._uploads:
                self._uploads.move_to_end(id)
                return id
        image = ImageBytes("the upload", data)
        try:
            with opened(image, sys.maxsize, FORMATS) as header:  # not yet decoded
                count = header.width * header.height
            if count > self._max_pixels:
                reason = f"{count:,} pixels; at most {self._max_pixels:,} are read"
                raise HTTPError(413, reason)
            pixels = read_image(image, self._max_pixels).pixels
        except HTTPError:
            raise
        except InputError as error:
            raise HTTPError(415, str(error)) from None
        vector = self._encoder.encode_images([pixels])[0]
        height, width = pixels.shape[:2]
        upload = Upload(vector, thumbnail(pixels, THUMBNAIL), width, height)
        with self._guard:
            self._uploads[id] = upload
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return id

    def upload(self, id: str) -> Upload:
        """One of the last uploads; raises HTTPError 404 if there is none."""
        found = self._uploads.get(id)
        if found is None:
            raise HTTPError(404, f"{id}: no such upload, or not kept any more")
        return found


@contextlib.contextmanager
def bad_is_missing(path: Path) -> Iterator[None]:
    """Says 404 of a bad file, without its folder, which is private."""
    try:
        yield
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise HTTPError(404, f"{path.name}: {reason}") from None


def stacks(
    vectors: Float32[np.ndarray, "N D"],
    ratios: Float[np.ndarray, " N"],
    *,
    neighbors: bool,
) -> list[list[int]]:
    """Places of nearly equal images, as those of a burst; the first image first.

    Every image of a stack is nearly equal to the first, so a stack does not drift. No
    place is in two stacks; one that is alone is in none. With `neighbors` a stack has
    only images that follow each other.

    Args:
        vectors: of the images, in the order in which they are shown.
        ratios: width / height of each.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1.0)
    alike = units @ units.T >= LEAST_COSINE
    alike &= np.abs(np.log(ratios[:, None] / ratios)) <= _MOST_DIFFERENCE
    found: list[list[int]] = []
    for place in range(len(vectors)):
        for stack in found[-1:] if neighbors else found:
            if alike[stack[0], place]:
                stack.append(place)
                break
        else:
            found.append([place])
    return [stack for stack in found if len(stack) > 1]
