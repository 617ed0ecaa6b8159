"""What is checked of every HTTP request before, and said of every answer."""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from fastapi import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

UPLOAD = "/api/upload"
TOKEN = "/api/token"
_JSON_BYTES = 128 * 1024  # of a body that is no upload: MOST_LETTERS, each escaped
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
# The page has nothing to hide: it asks for the token.
_OPEN = ("/", "/openapi.json", TOKEN)
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def is_local(host: str) -> bool:
    """Whether only programs of this machine can reach a server at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cookie_of(token: str) -> str:
    """What a browser that knew the token keeps; other servers of the host see it."""
    return hmac.new(token.encode(), b"vse_jax cookie", hashlib.sha256).hexdigest()


class Guard:
    """Wraps an application: hosts, origins, the token, sizes and times are checked.

    Args:
        app: what is served.
        host: address that the server listens at.
        token: that the API asks for; None: for none.
        cookie: name of the cookie that stands for the token.
        upload_bytes: of an upload, at most.
        timeout_s: until an answer begins, at most.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        token: str | None,
        cookie: str,
        upload_bytes: int,
        timeout_s: float,
    ):
        self._app = app
        self._host = host.lower()
        self._machine = socket.gethostname().lower()
        self._token = token
        self._cookie = cookie
        self._upload_bytes = upload_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is served")
        answer = _Answer(send)
        refusal = self._refusal(scope)
        if refusal:
            return await answer.error(*refusal)
        limited = _limited(receive, self._most_bytes(scope["path"]))
        try:
            async with asyncio.timeout(self._timeout_s) as answer.deadline:
                await self._app(scope, limited, answer.send)
        except TimeoutError:
            if answer.begun:
                raise
            await answer.error(504, f"no answer within {self._timeout_s:g} seconds")

    def _refusal(self, scope) -> tuple[int, str] | None:
        """(status, why) where a request is not even looked at."""
        pairs = [(k.decode("latin1"), v.decode("latin1")) for k, v in scope["headers"]]
        headers = dict(pairs)  # names come in lower case
        host = headers.get("host", "").lower()
        if sum(name == "host" for name, _ in pairs) != 1 or not self._is_ours(host):
            return 403, "Host: not a name of this server"
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD")
        ours = (None, f"http://{host}", f"https://{host}")
        if changes and origin not in ours:
            return 403, "Origin: another site's page"
        path = scope["path"]
        is_open = path in _OPEN or path.startswith("/page/")
        if self._token is not None and not is_open and not self._knows_token(headers):
            return 401, "a token is needed"
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size[:20]) > self._most_bytes(path):
            return 413, _too_large(self._most_bytes(path))
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. A page of another site may have its
        own name lead here (DNS rebinding); it cannot make the name ours."""
        found = _HOST.fullmatch(host)
        if not found:
            return False
        name = found[1].strip("[]")
        if name == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not is_local(self._host) and name in (self._host, self._machine)
        return address.is_loopback or not is_local(self._host)

    def _knows_token(self, headers: dict[str, str]) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(given.strip(), self._token):
            return True
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return kept is not None and same(kept.value, cookie_of(self._token))

    def _most_bytes(self, path: str) -> int:
        return self._upload_bytes if path == UPLOAD else _JSON_BYTES


def same(given: str, secret: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(given.encode(), secret.encode())


def _too_large(most: int) -> str:
    size = f"{most // 1_000_000} MB" if most >= 1_000_000 else f"{most // 1024} KB"
    return f"larger than {size}"


def _limited(receive: Receive, most: int) -> Receive:
    """`receive` that raises where a body grows beyond `most` bytes."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, _too_large(most))
        return message

    return limited


class _Answer:
    """Adds the headers that every answer has; knows whether it has begun."""

    def __init__(self, send: Send):
        self._send = send
        self.begun = False
        self.deadline: asyncio.Timeout | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            if self.deadline is not None and not self.deadline.expired():
                self.deadline.reschedule(None)  # a slow reader is not an error
            ours = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *ours]
        await self._send(message)

    async def error(self, status: int, reason: str) -> None:
        body = json.dumps({"error": reason}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})
