"""The page and the JSON API of an index: a FastAPI application."""

import asyncio
import functools
import hashlib
import io
import mimetypes
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as File
from typing import Annotated, Any, TypeVar

import anyio
from absl import logging
from fastapi import FastAPI, Header, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import ExifTags, Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import ClientDisconnect

import vse_jax
from vse_jax import InputError, SearchConfig, opened, orientation
from vse_search import guard
from vse_search.client import MOST_HITS
from vse_search.guard import problem
from vse_search.images import FORMATS, reading, thumbnail
from vse_search.query import MOST_PARTS, hint
from vse_search.searcher import (
    THUMBNAIL,
    Explanation,
    HTTPError,
    Query,
    Searcher,
    Status,
    bad_is_missing,
)
from vse_search.store import Filters, SortOrder

T = TypeVar("T")

PAGE = File(__file__).parent / "page"
# One encodes while the other searches or decodes; two captions at a time take less
# than one after the other, for a small model waits for memory (benchmarks/serve.py).
_MODEL_THREADS = 2
_IMAGE_THREADS = 2
_UPLOADING = 8  # uploads that are held in memory at a time
_LARGE = 2048  # px, the longer side of an image that is shown by itself
_THUMBNAILS = 2000  # kept in memory, about 10 KB each
# What browsers show, by Pillow's names.
_SHOWN = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
# Where a PNG's orientation may be.
_PNG_NOTES = re.compile(rb"eXIf|Raw profile type exif|tiff:Orientation")

# ---- What is asked and answered ------------------------------------------------------

Id = Annotated[int, Field(ge=1, lt=2**63)]
PathId = Annotated[int, Path(ge=1, lt=2**63)]
Tag = Annotated[str, Header()]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Name = Annotated[str | None, Field(max_length=4096)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchBody(Body):
    """What is looked for: the sum of these parts, among the images that pass."""

    query: str = Field("", description="docs/search.md: the grammar")
    like: list[Id] = Field([], max_length=MOST_PARTS)
    unlike: list[Id] = Field([], max_length=MOST_PARTS)
    uploads: list[Hex] = Field([], max_length=MOST_PARTS)
    top: int = Field(60, ge=1, le=MOST_HITS)
    min_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="leaves out what scores less; none: than the `cutoff`; -1: nothing",
    )
    after: Name = Field(None, description="YYYY-MM-DD, the first day")
    before: Name = Field(None, description="YYYY-MM-DD, the last day")
    camera: Name = None
    folder: Name = None
    order: SortOrder | None = Field(
        None, description="of all images that pass, where nothing is looked for"
    )
    offset: int = Field(0, ge=0, lt=2**63, description="to skip, in this order")

    def as_query(self) -> Query:
        filters = Filters(self.after, self.before, self.camera, self.folder)
        parts = self.query, self.like, self.unlike, self.uploads
        return Query(*parts, self.top, self.min_score, filters)


class ExplainBody(SearchBody):
    """A search and the image whose similarity is split."""

    id: Id


class TokenBody(Body):
    token: str = Field(max_length=4096)


class Problem(BaseModel):
    error: str = Field(description="one line")


class _Image(BaseModel):
    """`store.Hit`, as much of it as the page shows everywhere."""

    id: int
    path: str
    width: int
    height: int
    taken: str | None
    camera: str | None


class Picture(_Image):
    """A hit."""

    score: Annotated[float, AfterValidator(lambda x: round(x, 6))] | None
    copies: Annotated[int, BeforeValidator(len)]  # their number


class Details(_Image):
    """One image."""

    bytes: int
    copies: list[str]


class Found(BaseModel):
    hits: list[Picture]
    cutoff: float | None = Field(
        description="the score from which the model takes an image for what one "
        "caption says"
    )
    stacks: list[list[int]] = Field(
        description="ids of hits that are nearly equal, each list in the hits' order"
    )
    total: int | None = Field(description="images that pass, of an `order`")
    milliseconds: float
    hint: str | None = Field(description="how to write what may have been meant")


class Folder(BaseModel):
    there: bool


class Uploaded(BaseModel):
    upload: str
    width: int
    height: int


# ---- The application -----------------------------------------------------------------


class Workers:
    """Runs calls in threads; at most `queue` more of them wait."""

    def __init__(self, threads: int, queue: int):
        self._threads = ThreadPoolExecutor(threads)
        self._limiter = anyio.CapacityLimiter(threads)
        self._queue = queue

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The call's result. When the awaiting task is cancelled, so is a waiting call;
        one that has begun keeps its place until it ends, which is why this is not
        `anyio.to_thread.run_sync`.

        Raises:
            HTTPException: 429, at once; the function is not called.
        """
        load = self._limiter.statistics()
        is_busy = load.borrowed_tokens >= load.total_tokens
        if is_busy and load.tasks_waiting >= self._queue:
            raise HTTPException(429, "too many requests wait; try again")
        place = object()
        await self._limiter.acquire_on_behalf_of(place)
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._threads, function, *arguments)
        call.add_done_callback(lambda _: self._limiter.release_on_behalf_of(place))
        return await asyncio.shield(call)

    def close(self, seconds: float) -> bool:
        """Whether the calls that have begun end within this time."""
        end = threading.Thread(target=self._threads.shutdown, daemon=True)
        end.start()
        end.join(max(0.0, seconds))
        return not end.is_alive()


class _Page(StaticFiles):
    """Files of the page, and no other that may lie in its folder."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        is_ours = path.endswith((".html", ".css", ".js", ".svg"))
        return super().lookup_path(path) if is_ours else ("", None)


# Some systems say text/plain, and browsers then do not run them.
mimetypes.add_type("text/javascript", ".js")


class Server:
    """Answers what is asked of an index; `app` is the application with its guard."""

    def __init__(self, searcher: Searcher, options: SearchConfig, port: int):
        self._searcher = searcher
        self._options = options
        self._cookie = f"vse_jax_{port}"
        self._model = Workers(_MODEL_THREADS, options.queue)
        self._images = Workers(_IMAGE_THREADS, options.queue)
        app = FastAPI(
            title="vse_jax",
            description="Finds your own images by captions.",
            version=vse_jax.__version__,
            docs_url=None,  # FastAPI's pages load their scripts from elsewhere
            redoc_url=None,
            responses={"4XX": {"model": Problem}, "504": {"model": Problem}},
        )
        self._add_search(app)
        self._add_images(app)
        self._add_uploads(app)
        self._add_token(app)
        self._add_errors(app)
        app.mount("/page", _Page(directory=PAGE))
        app.get("/", include_in_schema=False)(lambda: FileResponse(PAGE / "index.html"))
        self.app = guard.Guard(
            app,
            host=options.host,
            hosts=options.hosts,
            token=options.token,
            cookie=self._cookie,
            upload_bytes=options.max_upload_mb * 1_000_000,
            timeout_s=options.timeout_s,
        )

    def close(self, seconds: float) -> bool:
        """Whether what has begun ends within this time."""
        end = time.monotonic() + seconds
        pools = (self._model, self._images)
        return all(pool.close(end - time.monotonic()) for pool in pools)

    def _add_search(self, app: FastAPI) -> None:
        searcher, options = self._searcher, self._options

        @app.get("/api/status")
        async def status() -> Status:
            return await self._images.run(searcher.status)

        @app.post("/api/search", response_model=Found)
        async def search(body: SearchBody) -> Any:
            start = time.perf_counter()
            asked = body.as_query(), body.order, body.offset
            found = await self._model.run(searcher.page, *asked)
            milliseconds = round(1000 * (time.perf_counter() - start), 1)
            if options.log_queries:
                count = len(found["hits"])
                logging.info("%r: %d found in %g ms", body.query, count, milliseconds)
            return found | {"milliseconds": milliseconds, "hint": hint(body.query)}

        @app.post("/api/explain")
        async def explain(body: ExplainBody) -> Explanation:
            return await self._model.run(searcher.explain, body.as_query(), body.id)

    def _add_images(self, app: FastAPI) -> None:
        searcher, run = self._searcher, self._images.run
        most = self._options.max_pixels

        @functools.lru_cache(_THUMBNAILS)
        def small(path: File, tag: str) -> bytes:
            with bad_is_missing(path), reading(path, most) as image:
                return thumbnail(image.pixels, THUMBNAIL)

        def webp(id: int, known: str) -> Response:
            path = searcher.file(searcher.image(id))

            def made(tag: str) -> Response:
                return Response(small(path, tag), media_type="image/webp")

            return _unless_known(known, path, "small", made)

        def shown(id: int, full: bool, known: str) -> Response:
            image = searcher.image(id)
            path = searcher.file(image)
            kind = _shown_as_it_is(path, most)

            def converted(_: str) -> Response:
                if kind and (full or max(image.width, image.height) <= _LARGE):
                    return FileResponse(path, media_type=kind)
                content = io.BytesIO()
                with bad_is_missing(path), reading(path, most) as found:
                    shown = Image.fromarray(found.pixels)
                    if not full:
                        shown.thumbnail((_LARGE, _LARGE), reducing_gap=2.0)
                    shown.save(content, "JPEG", quality=90)
                return Response(content.getvalue(), media_type="image/jpeg")

            form = f"{'full' if full else 'large'} {kind}"
            return _unless_known(known, path, form, converted)

        def is_there() -> bool:
            """The place where a drive was mounted is an empty folder afterwards."""
            try:
                return any(searcher.store.folder.iterdir())
            except OSError:
                return False

        @app.get("/api/thumbnail/{id}", name="thumbnail", response_class=Response)
        async def thumbnail_(id: PathId, if_none_match: Tag = "") -> Response:
            """WebP of at most 320 px."""
            return await run(webp, id, if_none_match)

        @app.get("/api/picture/{id}", response_class=Response)
        async def picture(
            id: PathId, full: bool = False, if_none_match: Tag = ""
        ) -> Response:
            """In a format that browsers show; of at most 2,048 px unless `full`."""
            return await run(shown, id, full, if_none_match)

        @app.get("/api/file/{id}", response_class=Response)
        async def file(id: PathId) -> Response:
            """The file itself, to keep: its content and its name."""
            image = await run(searcher.image, id)
            path, name = await run(searcher.file, image), image.path.rpartition("/")[2]
            kind = "application/octet-stream"
            return FileResponse(path, media_type=kind, filename=name)

        @app.get("/api/folder", response_model=Folder)
        async def folder() -> Any:
            """Apart from /api/status, since a drive that sleeps takes its time."""
            return {"there": await run(is_there)}

        @app.get("/api/data/{id}", response_model=Details)
        async def data(id: PathId) -> Any:
            return await run(searcher.image, id)

    def _add_uploads(self, app: FastAPI) -> None:
        body = {"content": {"image/*": {"schema": {"type": "string"}}}}
        described = {"requestBody": body | {"required": True}}
        searcher, uploading = self._searcher, asyncio.Semaphore(_UPLOADING)

        @app.post(guard.UPLOAD, response_model=Uploaded, openapi_extra=described)
        async def add(request: Request) -> Any:
            if uploading.locked():
                raise HTTPException(429, "too many requests wait; try again")
            async with uploading:
                data = await request.body()
                id = await self._model.run(searcher.add_upload, data)
            upload = searcher.upload(id)
            return {"upload": id, "width": upload.width, "height": upload.height}

        @app.get(guard.UPLOAD + "/{id}", response_class=Response)
        async def get(id: str) -> Response:
            return Response(searcher.upload(id).thumbnail, media_type="image/webp")

    def _add_token(self, app: FastAPI) -> None:
        token = self._options.token

        @app.post(guard.TOKEN, status_code=204, response_class=Response)
        async def check(body: TokenBody, request: Request) -> Response:
            """Answers with a cookie that stands for the token."""
            response = Response(status_code=204)
            if token is None:
                return response
            if not guard.same(body.token, token):
                raise HTTPException(401, "not the token")
            response.set_cookie(
                self._cookie,
                guard.cookie_of(token, int(time.time()) + guard.COOKIE_S),
                max_age=guard.COOKIE_S,
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
            return response

    def _add_errors(self, app: FastAPI) -> None:
        store = self._searcher.store

        @app.exception_handler(InputError)
        async def bad_input(_, error: InputError) -> JSONResponse:
            if isinstance(error, HTTPError):
                return problem(error.status, str(error))
            # Where the index is, is private.
            reason = str(error).replace(str(store.index), store.index.name)
            try:
                store.version()
            except InputError:  # it has gone, or is another model's
                logging.warning("%s", error)
                return problem(503, reason)
            return problem(400, reason)

        @app.exception_handler(RequestValidationError)
        async def bad_fields(_, error: RequestValidationError) -> JSONResponse:
            first = error.errors()[0]
            place, *path = map(str, first["loc"])
            reason = f"{'.'.join(path) or place}: {first['msg']}"
            return problem(404 if place == "path" else 400, reason)

        @app.exception_handler(StarletteError)
        async def http(_, error: StarletteError) -> JSONResponse:
            return problem(error.status_code, str(error.detail), error.headers)

        @app.exception_handler(ClientDisconnect)
        async def gone(*_) -> JSONResponse:
            return problem(400, "the request ended early")

        @app.exception_handler(Exception)
        async def bug(*_) -> JSONResponse:  # its traceback is logged
            return problem(500, "an error in the server; its log says more")


def _shown_as_it_is(path: File, max_pixels: int) -> str | None:
    """The type of a file that browsers show, and show upright."""
    with bad_is_missing(path), opened(path, max_pixels, FORMATS) as image:
        kind = _SHOWN.get(image.format or "")
        # Pillow would decode a PNG to see whether notes stand behind its pixels.
        if image.format == "PNG" and not _PNG_NOTES.search(path.read_bytes()):
            return kind
        turned = 1
        if kind == "image/jpeg":  # browsers turn these, by EXIF alone
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            turned = exif.get(ExifTags.Base.Orientation, 1)
        return kind if turned == orientation(image) else None


def _unless_known(
    known: str, path: File, form: str, make: Callable[[str], Response]
) -> Response:
    """What `make` gives of an ETag; 304 where a browser has it.

    The ETag changes when the file does, or when an id means another file.
    """
    status = path.stat()
    facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{form}"
    digest = hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()
    tag = f'"{digest[:32]}"'
    response = Response(status_code=304) if known == tag else make(tag)
    response.headers["ETag"] = tag
    return response
