"""What is checked of every HTTP request before, and said of every answer."""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import math
import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from vse_jax import printable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

UPLOAD = "/api/upload"
TOKEN = "/api/token"
COOKIE_S = 30 * 24 * 3600  # for which a browser need not give the token again
_JSON_BYTES = 128 * 1024  # of a body that is no upload: MOST_LETTERS, each escaped
_SLOWEST = 5_000  # bytes a second of a body, on average
_WRONG_TOKENS = 10  # from one address within a minute; then none is looked at
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+(?:%[a-z0-9._-]+)?\])(?::\d{1,5})?")
_SCHEMES = ("http", "https")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
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
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def cookie_of(token: str, until: int) -> str:
    """What a browser that knew the token keeps; other servers of the host see it.

    until: seconds since 1970, after which it is worth nothing.
    """
    text = f"vse_jax cookie {until}".encode()
    return f"{until}.{hmac.new(token.encode(), text, hashlib.sha256).hexdigest()}"


class Guard:
    """Wraps an application: hosts, origins, the token, sizes and times are checked.

    A page of another site may have its own name lead here (DNS rebinding), so a server
    without a token answers to names only that are its own. With a token such a page
    gets nothing: it does not know it, and a browser keeps the cookie for the name that
    the token was given to. So every name is good then.

    What a reverse proxy says of a request (X-Forwarded-For, -Proto, -Host, -Prefix) is
    taken from addresses that Uvicorn trusts: this machine's, or those that the variable
    FORWARDED_ALLOW_IPS lists.

    Args:
        app: what is served.
        hosts: names that are the server's, beside localhost and loopback addresses;
            '*.example.com' stands for all below it.
        host: address that the server listens at.
        token: that the API asks for; None: for none.
        cookie: name of the cookie that stands for the token.
        upload_bytes: of an upload, at most.
        timeout_s: until an answer to a whole request begins, at most; and between two
            pieces of one.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        hosts: Sequence[str] = (),
        token: str | None,
        cookie: str,
        upload_bytes: int,
        timeout_s: float,
    ):
        self._app = app
        self._is_local = is_local(host)
        self._hosts = [name.lower() for name in hosts]
        self._token = token
        self._cookie = cookie
        self._upload_bytes = upload_bytes
        self._timeout_s = timeout_s
        self._tries = _Tries()
        trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")
        app_of_uvicorn: Any = self._guarded  # uvicorn types its own kinds of messages
        self._proxied: Any = ProxyHeadersMiddleware(app_of_uvicorn, trusted)

    async def __call__(self, scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is served")
        scope = dict(scope)  # uvicorn goes on reading its own
        peer, port = scope.get("client") or ("", 0)
        peer = peer.removeprefix("::ffff:")  # IPv4 where both kinds are listened at
        scope["client"] = peer, port
        if peer not in self._proxied.trusted_hosts:
            theirs = (b"x-forwarded-host", b"x-forwarded-prefix")
            scope["headers"] = [h for h in scope["headers"] if h[0] not in theirs]
        await self._proxied(scope, receive, send)

    async def _guarded(self, scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, without_body=scope["method"] == "HEAD")
        pairs = [(k.decode("latin1"), v.decode("latin1")) for k, v in scope["headers"]]
        headers = dict(pairs)  # names come in lower case
        path = _below_prefix(scope, headers.get("x-forwarded-prefix", "").rstrip("/"))
        if not path:  # addresses in the page are relative to its folder
            location = {"location": f"{scope['path']}/"}
            return await answer.error(308, "the page has a slash behind it", location)
        refusal = self._refusal(scope, path, pairs, headers)
        if refusal:
            return await answer.error(*refusal)
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
        receive = self._limited(receive, self._most_bytes(path), answer)
        try:
            async with asyncio.timeout(self._timeout_s) as answer.deadline:
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if answer.status:
                raise
            await answer.error(504, f"no answer within {self._timeout_s:g} seconds")
        if path == TOKEN and answer.status == 401:
            self._tries.failed(_address(scope))

    def _refusal(
        self, scope, path: str, pairs: list[tuple[str, str]], headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]] | tuple[int, str] | None:
        """(status, why, headers) where a request is not even looked at."""
        host = headers.get("host", "").lower()
        if sum(name == "host" for name, _ in pairs) != 1:
            return 403, "Host: a request has one"
        if not self._is_ours(host):
            return 403, (
                f"Host: {_shown(host)} is not a name of this server; "
                "config.search.hosts can allow it"
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = given.strip() if scheme.lower() == "bearer" else None
        if self._token is not None and (bearer is not None or path == TOKEN):
            wait = self._tries.wait(_address(scope))
            if wait:
                why = f"too many wrong tokens; try again in {wait} seconds"
                return 429, why, {"retry-after": str(wait)}
            if bearer is not None and not same(bearer, self._token):
                self._tries.failed(_address(scope))
                bearer = None
        knows = self._token is not None and bearer is not None
        # Who sends the token itself is no other site's page.
        if scope["method"] not in ("GET", "HEAD") and not knows:
            origin = headers.get("origin")
            if not self._is_own_page(origin, host, headers):
                return 403, (
                    f"Origin: {_shown(origin or 'none')} is another site's page; "
                    "config.search.hosts can allow it"
                )
        is_open = path in _OPEN or path.startswith("/page/")
        knows = knows or self._token is None or self._has_cookie(headers)
        if not is_open and not knows:
            return 401, "a token is needed", {"www-authenticate": "Bearer"}
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size[:20]) > self._most_bytes(path):
            return 413, _too_large(self._most_bytes(path))
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server."""
        found = _HOST.fullmatch(host)
        if not found:
            return False
        name = found[1].strip("[]").removesuffix(".")
        if self._token is not None or name == "localhost" or self._allows(name):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._is_local

    def _allows(self, name: str) -> bool:
        """Whether config.search.hosts has a name."""
        return any(
            name.endswith(known[1:]) if known.startswith("*.") else name == known
            for known in self._hosts
        )

    def _is_own_page(
        self, origin: str | None, host: str, headers: dict[str, str]
    ) -> bool:
        """Whether the page that asks, if it is one, is this server's.

        A browser that says so (Sec-Fetch-Site, over https and to localhost) knows best:
        a reverse proxy may change the host, and no page can change what it says.
        """
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        if origin is None:
            return True
        hosts = (host, headers.get("x-forwarded-host", host).lower())
        if any(origin == f"{scheme}://{h}" for h in hosts for scheme in _SCHEMES):
            return True
        try:
            return self._allows((urlsplit(origin).hostname or "").removesuffix("."))
        except ValueError:
            return False

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        assert self._token is not None
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        until = kept.value.partition(".")[0] if kept is not None else ""
        if kept is None or not re.fullmatch(r"[0-9]{1,12}", until):
            return False
        is_fresh = int(until) > time.time()
        return is_fresh and same(kept.value, cookie_of(self._token, int(until)))

    def _most_bytes(self, path: str) -> int:
        return self._upload_bytes if path == UPLOAD else _JSON_BYTES

    def _limited(self, receive: Receive, most: int, answer: "_Answer") -> Receive:
        """`receive` that raises where a body grows beyond `most` bytes, or hardly does.

        The time that a body takes is none of the application's.
        """
        begun, seen, is_whole = time.monotonic(), 0, False

        async def limited() -> Message:
            nonlocal seen, is_whole
            if is_whole:  # it waits for the end of the connection
                return await receive()
            answer.limit(None)
            left = begun + seen / _SLOWEST - time.monotonic()
            try:
                async with asyncio.timeout(self._timeout_s + min(0.0, left)):
                    message = await receive()
            except TimeoutError:
                why = f"the body stops, or comes slower than {_SLOWEST // 1000} kB/s"
                raise HTTPException(408, why, {"connection": "close"}) from None
            answer.limit(self._timeout_s)
            is_whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, _too_large(most))
            return message

        return limited


def _below_prefix(scope, prefix: str) -> str:
    """The path that is asked for below a proxy's prefix, which the scope then names.

    A proxy may have taken the prefix away or not; without one of its own, '' is asked
    for where the prefix is all of the path.
    """
    path: str = scope["path"]
    if not _PREFIX.fullmatch(prefix):
        return path
    if path == prefix or path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    scope["root_path"], scope["path"] = prefix, prefix + path
    return path


def _shown(text: str) -> str:
    return f"'{printable(text[:100])}'"


def _address(scope) -> str:
    """Whom wrong tokens are counted for: an IPv6 client has all of its /64."""
    client: str = scope["client"][0]
    try:
        ipaddress.IPv6Address(client)
    except ValueError:
        return client
    return str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))


class _Tries:
    """Counts the wrong tokens of each address in the last minute."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Seconds until a token of this address is looked at again; 0: it is now."""
        failures = self._failures.get(address)
        if failures is None or len(failures) < _WRONG_TOKENS:
            return 0
        return max(0, math.ceil(failures[0] + 60 - time.monotonic()))

    def failed(self, address: str) -> None:
        """Notes a wrong token."""
        failures = self._failures.setdefault(address, deque(maxlen=_WRONG_TOKENS))
        failures.append(time.monotonic())
        self._failures.move_to_end(address)
        if len(self._failures) > 10_000:
            self._failures.popitem(last=False)


def same(given: str, secret: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(given.encode(), secret.encode())


def _too_large(most: int) -> str:
    size = f"{most // 1_000_000} MB" if most >= 1_000_000 else f"{most // 1024} KB"
    return f"larger than {size}"


class _Answer:
    """Adds the headers that every answer has; knows whether it has begun."""

    def __init__(self, send: Send, *, without_body: bool):
        self._send = send
        self._without_body = without_body
        self.status = 0  # until it has begun
        self.deadline: asyncio.Timeout | None = None

    def limit(self, seconds: float | None) -> None:
        """Gives an answer that has not begun so much time from now on; None: any."""
        if self.deadline is None or self.deadline.expired() or self.status:
            return
        now = asyncio.get_running_loop().time()
        self.deadline.reschedule(None if seconds is None else now + seconds)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.limit(None)  # a slow reader is not an error
            self.status = message["status"]
            ours = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *ours]
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)

    async def error(
        self, status: int, reason: str, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps({"error": reason}).encode()
        ours = {"content-type": "application/json", "content-length": str(len(body))}
        pairs = [(k.encode(), v.encode()) for k, v in (ours | (headers or {})).items()]
        await self.send(
            {"type": "http.response.start", "status": status, "headers": pairs}
        )
        await self.send({"type": "http.response.body", "body": body})
