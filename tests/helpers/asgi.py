"""Asks an ASGI application without a socket, byte by byte as a test wants it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterable, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote


class Fault(Exception):
    """A bug of an application."""


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> str:
        """The line of an error."""
        assert self.headers["content-type"] == "application/json", self
        (name,) = self.json()
        assert name == "error"
        line = self.json()[name]
        assert line
        assert line == " ".join(line.split())
        return line


async def ask(
    app,
    method: str,
    target: str,
    headers=(),
    body: bytes | Iterable[bytes] | AsyncIterable[bytes] | None = b"",
    client: str = "127.0.0.1",
) -> Reply:
    """The answer; a body in pieces comes without its length, None never comes."""
    headers = {"host": "127.0.0.1:8765"} | dict(headers)
    if isinstance(body, bytes):
        headers = {"content-length": str(len(body))} | headers
        body = [body]
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.encode(), value.encode("latin1"))
            for name, value in headers.items()
            if value is not None
        ],
        "client": (client, 50000),
        "server": ("127.0.0.1", 8765),
    }
    pieces = _pieces(body)
    sent: list[dict] = []

    async def receive():
        piece = await anext(pieces, None)
        if piece is None:
            await asyncio.Event().wait()  # the browser stays and says nothing
        return {"type": "http.request", **piece}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(Fault):  # a server logs it
        await app(scope, receive, send)
    start, *rest = sent
    found = {k.decode(): v.decode("latin1") for k, v in start["headers"]}
    return Reply(start["status"], found, b"".join(m.get("body", b"") for m in rest))


async def _pieces(body):
    if isinstance(body, AsyncIterable):
        async for piece in body:
            yield {"body": piece, "more_body": True}
    else:
        for piece in body or ():
            yield {"body": piece, "more_body": True}
    if body is not None:
        yield {"body": b""}


class Asker:
    """Asks one application from code that is not asynchronous."""

    def __init__(self, app):
        self.app = app
        self.client = "127.0.0.1"
        self._runner = asyncio.Runner()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.close()

    def run(self, coroutine):
        return self._runner.run(coroutine)

    def __call__(self, method: str, target: str, headers=(), body=b"") -> Reply:
        return self.run(ask(self.app, method, target, headers, body, self.client))

    def get(self, target: str, headers=()) -> Reply:
        return self("GET", target, headers)

    def post(self, target: str, fields, headers=()) -> Reply:
        kind = {"content-type": "application/json"}
        data = json.dumps(fields).encode()
        return self("POST", target, kind | dict(headers), data)
