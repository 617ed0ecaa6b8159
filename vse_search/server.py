"""The page and the JSON API of an index: a FastAPI application."""

import asyncio
import functools
import time
from pathlib import Path as File
from typing import Annotated, Any

from absl import logging
from fastapi import FastAPI, Header, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from pydantic import ConfigDict as Rules
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import vse_jax
from vse_jax import Config, InputError
from vse_search import guard
from vse_search.client import MOST_HITS
from vse_search.engine import Filters
from vse_search.gallery import Content, Gallery, Refused
from vse_search.opening import Opened
from vse_search.query import MOST_PARTS, hint
from vse_search.searcher import Choice, Question, Searcher
from vse_search.store import Order
from vse_search.workers import QueueFull, Workers

PAGE = File(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# One encodes while the other searches or decodes; two sentences at a time take less
# than one after the other, for a small model waits for memory (benchmarks/serve.py).
_MODEL_THREADS = 2
_PICTURE_THREADS = 2
_UPLOADING = 8  # uploads that are held in memory at a time

Id = Annotated[int, Field(ge=1, lt=2**63)]
Tag = Annotated[str, Header()]
PathId = Annotated[int, Path(ge=1, lt=2**63)]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Name = Annotated[str | None, Field(max_length=4096)]


class Body(BaseModel):
    model_config = Rules(extra="forbid")


class SearchBody(Body):
    """What is looked for: the sum of these parts, among the pictures that pass."""

    query: str = Field("", description="docs/search_server.md: the grammar")
    like: list[Id] = Field([], max_length=MOST_PARTS)
    unlike: list[Id] = Field([], max_length=MOST_PARTS)
    uploads: list[Hex] = Field([], max_length=MOST_PARTS)
    top: int = Field(60, ge=1, le=MOST_HITS)
    min_score: float | None = Field(None, allow_inf_nan=False)
    after: Name = Field(None, description="YYYY-MM-DD, the first day")
    before: Name = Field(None, description="YYYY-MM-DD, the last day")
    camera: Name = None
    folder: Name = None
    order: Order | None = Field(
        None, description="of all pictures that pass, where nothing is looked for"
    )
    offset: int = Field(0, ge=0, lt=2**63, description="to skip, in this order")

    def question(self) -> Question:
        return Question(self.query, self.like, self.unlike, self.uploads)

    def choice(self) -> Choice:
        filters = Filters(self.after, self.before, self.camera, self.folder)
        return Choice(self.top, self.min_score, filters)


class ExplainBody(SearchBody):
    """A search and the picture whose similarity is split."""

    id: Id


class TokenBody(Body):
    token: str = Field(max_length=4096)


class Problem(BaseModel):
    error: str = Field(description="one line")


class Status(BaseModel):
    pictures: int
    folder: str
    model: str
    trained_on: str | None
    explains: bool
    uploads: bool
    cameras: list[str]
    folders: list[str]
    first: str | None
    last: str | None
    version: int


class Hit(BaseModel):
    id: int
    path: str
    score: float | None
    width: int
    height: int
    taken: str | None
    camera: str | None
    copies: int


class Hits(BaseModel):
    hits: list[Hit]
    stacks: list[list[int]] = Field(
        description="ids of hits that are nearly equal, each list in the hits' order"
    )
    total: int | None = Field(description="pictures that pass, of an `order`")
    milliseconds: float
    hint: str | None = Field(description="how to write what may have been meant")


class Folder(BaseModel):
    there: bool


class Uploaded(BaseModel):
    upload: str
    width: int
    height: int


class Data(BaseModel):
    id: int
    path: str
    width: int
    height: int
    taken: str | None
    camera: str | None
    bytes: int
    copies: list[str]


class Word(BaseModel):
    word: str
    value: float


class Explanation(BaseModel):
    similarity: float
    cells: list[list[float]] | None
    words: list[Word]


class Server:
    """Answers requests; lets them wait for the model and the decoders.

    Args:
        opened: a model, an index that it made and its engine.
        options: config.search.
        port: that it listens at.
    """

    def __init__(self, opened: Opened, options: Config, port: int):
        self._store = opened.store
        self._gallery = Gallery(opened.store, options.max_pixels)
        self._searcher = Searcher(opened, self._gallery)
        self._options = options
        self._cookie = f"vse_jax_{port}"
        self._model = Workers(_MODEL_THREADS, options.queue)
        self._pictures = Workers(_PICTURE_THREADS, options.queue)
        self._uploading = asyncio.Semaphore(_UPLOADING)

    def warm_up(self) -> None:
        """Compiles what queries need."""
        self._searcher.warm_up()

    def close(self, seconds: float) -> bool:
        """Drops what waits; whether what had begun has ended within this time."""
        ends = time.monotonic() + seconds
        pools = (self._model, self._pictures)
        for pool in pools:
            pool.stop()
        return all(pool.ended(ends - time.monotonic()) for pool in pools)

    def app(self) -> guard.App:
        """The application, with everything that guards it."""
        app = FastAPI(
            title="vse_jax",
            description="Finds one's own pictures by sentence.",
            version=vse_jax.__version__,
            docs_url=None,  # FastAPI's pages load their scripts from elsewhere
            redoc_url=None,
            responses={"4XX": {"model": Problem}, "504": {"model": Problem}},
        )
        _add_page(app)
        self._add_search(app)
        self._add_pictures(app)
        self._add_uploads(app)
        self._add_token(app)
        self._add_errors(app)
        return guard.Guard(
            app,
            host=self._options.host,
            hosts=self._options.hosts,
            token=self._options.token,
            cookie=self._cookie,
            upload_bytes=self._options.max_upload_mb * 1_000_000,
            timeout_s=self._options.timeout_s,
        )

    def _add_search(self, app: FastAPI) -> None:
        @app.get("/api/status", response_model=Status)
        async def status() -> Any:
            return JSONResponse(await self._pictures.run(self._searcher.status))

        @app.post("/api/search", response_model=Hits)
        async def search(body: SearchBody) -> Any:
            start = time.perf_counter()
            answer = await self._model.run(self._answer, body)
            milliseconds = round(1000 * (time.perf_counter() - start), 1)
            if self._options.log_queries:
                found = len(answer["hits"])
                logging.info("%r: %d found in %g ms", body.query, found, milliseconds)
            return JSONResponse(
                answer | {"milliseconds": milliseconds, "hint": hint(body.query)}
            )

        @app.post("/api/explain", response_model=Explanation)
        async def explain(body: ExplainBody) -> Any:
            explain = self._searcher.explain
            return JSONResponse(
                await self._model.run(explain, body.question(), body.id)
            )

    def _answer(self, body: SearchBody) -> dict[str, Any]:
        """The pictures that fit best or, in an `order`, all that pass the filters."""
        if body.order is None:
            search = self._searcher.search
            return search(body.question(), body.choice(), stacked=True)
        if body.question().is_empty():
            return self._searcher.browse(body.choice(), body.order, body.offset)
        raise InputError("order: only where nothing is looked for")

    def _add_pictures(self, app: FastAPI) -> None:
        gallery, run = self._gallery, self._pictures.run
        binary: dict[str, Any] = {"response_class": Response}

        @app.get("/api/thumbnail/{id}", **binary)
        async def thumbnail(id: PathId, if_none_match: Tag = "") -> Response:
            known = if_none_match.strip('"')
            return _picture(await run(gallery.thumbnail, id, known))

        @app.get("/api/picture/{id}", **binary)
        async def picture(
            id: PathId, full: bool = False, if_none_match: Tag = ""
        ) -> Response:
            known = if_none_match.strip('"')
            return _picture(await run(gallery.picture, id, full, known))

        @app.get("/api/file/{id}", **binary)
        async def file(id: PathId) -> Response:
            """The file itself, to keep: its content and its name."""
            path, name = await run(gallery.file, id)
            kind = "application/octet-stream"
            return FileResponse(path, media_type=kind, filename=name)

        @app.get("/api/folder", response_model=Folder)
        async def folder() -> Any:
            """Apart from /api/status, since a drive that sleeps takes its time."""
            return JSONResponse({"there": await run(gallery.folder_is_there)})

        @app.get("/api/data/{id}", response_model=Data)
        async def data(id: PathId) -> Any:
            row = await run(gallery.row, id)
            return JSONResponse({k: getattr(row, k) for k in Data.model_fields})

    def _add_uploads(self, app: FastAPI) -> None:
        body = {"content": {"image/*": {"schema": {"type": "string"}}}}
        described = {"requestBody": body | {"required": True}}

        @app.post(guard.UPLOAD, response_model=Uploaded, openapi_extra=described)
        async def add(request: Request) -> Any:
            if self._uploading.locked():
                raise QueueFull
            async with self._uploading:
                data = await request.body()
                id = await self._model.run(self._searcher.add_upload, data)
            upload = self._searcher.upload(id)
            return JSONResponse(
                {"upload": id, "width": upload.width, "height": upload.height}
            )

        @app.get(guard.UPLOAD + "/{id}", response_class=Response)
        async def get(id: str) -> Response:
            return _picture(
                Content("image/webp", id, self._searcher.upload(id).thumbnail)
            )

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
        """Every error is {"error": one line}."""

        @app.exception_handler(InputError)
        async def bad_input(_, error: InputError) -> JSONResponse:
            if isinstance(error, Refused):
                return _problem(error.status, str(error))
            # Where its index is, is nobody's business.
            index = self._store.index
            reason = str(error).replace(str(index), index.name)
            try:
                self._store.version()
            except InputError:  # it has gone, or is another model's
                logging.warning("%s", error)
                return _problem(503, reason)
            return _problem(400, reason)

        @app.exception_handler(RequestValidationError)
        async def bad_fields(_, error: RequestValidationError) -> JSONResponse:
            first = error.errors()[0]
            place, *path = map(str, first["loc"])
            reason = f"{'.'.join(path) or place}: {first['msg']}"
            return _problem(404 if place == "path" else 400, reason)

        @app.exception_handler(HTTPException)
        async def http(_, error: HTTPException) -> JSONResponse:
            return _problem(error.status_code, str(error.detail), error.headers)

        @app.exception_handler(QueueFull)
        async def busy(*_) -> JSONResponse:
            return _problem(429, "too many requests wait; try again")

        @app.exception_handler(ClientDisconnect)
        async def gone(*_) -> JSONResponse:
            return _problem(400, "the request ended early")

        @app.exception_handler(Exception)
        async def bug(*_) -> JSONResponse:  # its traceback is logged
            return _problem(500, "an error in the server; its log says more")


def _picture(content: Content) -> Response:
    # A picture may change, so a browser asks whether what it has is still good.
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{content.tag}"'}
    status = 200 if content.data is not None else 304
    return Response(content.data, status, headers, content.kind)


def _add_page(app: FastAPI) -> None:
    files = {p.name: p for p in PAGE.glob("*") if p.suffix in _KINDS}

    def send(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"/page/{name}: there is no such file")
        path = files[name]
        headers = {"Cache-Control": "no-cache"}
        return Response(path.read_bytes(), 200, headers, _KINDS[path.suffix])

    app.get("/", include_in_schema=False)(functools.partial(send, "index.html"))
    app.get("/page/{name}", include_in_schema=False)(send)


def _problem(status: int, reason: str, headers=None) -> JSONResponse:
    # A text from a request may hold half characters, which cannot be sent.
    line = " ".join(reason.split()).encode(errors="backslashreplace").decode()
    return JSONResponse({"error": line}, status, headers)
