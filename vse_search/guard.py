"""What is checked of every HTTP request first, and said with every answer."""

import asyncio
import hashlib
import hmac
import ipaddress
import math
import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from vse_jax import printable

UPLOAD = "/api/upload"
TOKEN = "/api/token"
COOKIE_S = 30 * 24 * 3600  # for which a browser need not give the token again
_JSON_BYTES = 128 * 1024  # of a body that is no upload: MOST_LETTERS, each escaped
_SLOWEST = 5_000  # bytes a second of a body, on average
_WRONG_TOKENS = 10  # from one address within a minute; then none is looked at
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+(?:%[a-z0-9._-]+)?\])(?::\d{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_PUBLIC = ("/", "/openapi.json", TOKEN)  # and the page, which asks for the token
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
    """What a browser that gave the token keeps; other servers of the host see it.

    until: seconds since 1970, after which it is worth nothing.
    """
    text = f"vse_jax cookie {until}".encode()
    return f"{until}.{hmac.new(token.encode(), text, hashlib.sha256).hexdigest()}"


def same(given: str, secret: str) -> bool:
    """Compares two texts in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), secret.encode())


def problem(status: int, reason: str, headers: Any = None) -> JSONResponse:
    """An error as every client gets it: {"error": one line}."""
    # A text from a request may hold half characters, which cannot be sent.
    line = " ".join(reason.split()).encode(errors="backslashreplace").decode()
    return JSONResponse({"error": line}, status, headers)


@dataclass(eq=False)
class Guard:
    """ASGI middleware that checks hosts, origins, the token, sizes and times.

    A page of another site may have its own name lead here (DNS rebinding), so a server
    without a token answers only to names that are its own. Such a page does not know
    the token, and a browser sends the cookie only to the name that it is from: with a
    token every name is good.

    Starlette's TrustedHostMiddleware knows neither all loopback addresses, nor names
    that end with a dot, nor two Host headers. It and the RequestBodyLimitMiddleware
    answer in plain text.

    What a reverse proxy says of a request (X-Forwarded-For, -Proto, -Host, -Prefix) is
    taken from addresses that Uvicorn trusts: this machine's, or those that the variable
    FORWARDED_ALLOW_IPS lists.
    """

    app: ASGIApp
    _: KW_ONLY
    host: str  # address that the server listens at
    hosts: Sequence[str] = ()  # its other names; '*.example.com': all below it
    token: str | None  # that the API asks for
    cookie: str  # name of the one that stands for the token
    upload_bytes: int  # the most
    timeout_s: float  # until a whole request's answer begins, and between two pieces

    def __post_init__(self) -> None:
        self._is_local = is_local(self.host)
        self._names = [name.lower() for name in self.hosts]
        self._wrong_tokens = _WrongTokens()
        trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")
        guarded: Any = self._guarded  # uvicorn types its own kinds of messages
        self._proxied: Any = ProxyHeadersMiddleware(guarded, trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is served")
        scope = dict(scope)  # uvicorn goes on reading its own
        client, port = scope.get("client") or ("", 0)
        client = client.removeprefix("::ffff:")  # IPv4 on a socket that takes both
        scope["client"] = client, port
        if client not in self._proxied.trusted_hosts:
            proxys = (b"x-forwarded-host", b"x-forwarded-prefix")
            scope["headers"] = [h for h in scope["headers"] if h[0] not in proxys]
        await self._proxied(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
        if _PREFIX.fullmatch(prefix):  # a proxy may have taken it away, or not
            if path == prefix or path.startswith(f"{prefix}/"):
                path = path.removeprefix(prefix)
            scope["root_path"], scope["path"] = prefix, prefix + path
        most = self.upload_bytes if path == UPLOAD else _JSON_BYTES
        is_head = scope["method"] == "HEAD"
        exchange = _Exchange(receive, send, most, self.timeout_s, is_head)
        try:
            if not path:  # addresses in the page are relative to its folder
                location = {"location": f"{scope['path']}/"}
                raise HTTPException(308, "the page has a slash behind it", location)
            self._check(scope, path, headers, most)
            if is_head:
                scope["method"] = "GET"
            async with asyncio.timeout(self.timeout_s) as exchange.deadline:
                await self.app(scope, exchange.receive, exchange.send)
        except (TimeoutError, HTTPException) as error:
            if exchange.status:
                raise
            if isinstance(error, TimeoutError):
                why = f"no answer within {self.timeout_s:g} seconds"
                error = HTTPException(504, why)
            refused = problem(error.status_code, str(error.detail), error.headers)
            await refused(scope, receive, exchange.send)
        if path == TOKEN and exchange.status == 401:
            self._wrong_tokens.add(_network(scope))

    def _check(self, scope: Scope, path: str, headers: Headers, most: int) -> None:
        """Raises HTTPException for a request that the application does not get."""
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1:
            raise HTTPException(403, "Host: a request has one")
        if not self._is_ours(host):
            raise HTTPException(
                403,
                f"Host: {_shown(host)} is not a name of this server; "
                "config.search.hosts can allow it",
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = given.strip() if scheme.lower() == "bearer" else None
        if self.token is not None and (bearer is not None or path == TOKEN):
            if wait := self._wrong_tokens.wait_s(_network(scope)):
                raise HTTPException(
                    429,
                    f"too many wrong tokens; try again in {wait} seconds",
                    {"retry-after": str(wait)},
                )
            if bearer is not None and not same(bearer, self.token):
                self._wrong_tokens.add(_network(scope))
                bearer = None
        has_token = self.token is not None and bearer is not None
        # Whoever sends the token itself is no other site's page.
        if scope["method"] not in ("GET", "HEAD") and not has_token:
            origin = headers.get("origin")
            if not self._is_own_page(origin, host, headers):
                raise HTTPException(
                    403,
                    f"Origin: {_shown(origin or 'none')} is another site's page; "
                    "config.search.hosts can allow it",
                )
        is_public = path in _PUBLIC or path.startswith("/page/")
        if not (is_public or self.token is None or has_token):
            cookies = cookie_parser(headers.get("cookie", ""))
            until, _, _ = (cookie := cookies.get(self.cookie, "")).partition(".")
            is_fresh = re.fullmatch(r"[0-9]{1,12}", until) and int(until) > time.time()
            if not is_fresh or not same(cookie, cookie_of(self.token, int(until))):
                needed = {"www-authenticate": "Bearer"}
                raise HTTPException(401, "a token is needed", needed)
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size[:20]) > most:
            raise _too_large(most)

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server."""
        found = _HOST.fullmatch(host)
        if not found:
            return False
        name = found[1].strip("[]").removesuffix(".")
        if self.token is not None or name == "localhost" or self._allows(name):
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
            for known in self._names
        )

    def _is_own_page(self, origin: str | None, host: str, headers: Headers) -> bool:
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
        if any(origin in (f"http://{name}", f"https://{name}") for name in hosts):
            return True
        try:
            return self._allows((urlsplit(origin).hostname or "").removesuffix("."))
        except ValueError:
            return False


def _shown(text: str) -> str:
    return f"'{printable(text[:100])}'"


def _too_large(most: int) -> HTTPException:
    size = f"{most // 1_000_000} MB" if most >= 1_000_000 else f"{most // 1024} KB"
    return HTTPException(413, f"larger than {size}")


def _network(scope: Scope) -> str:
    """Whom wrong tokens are counted for: an IPv6 client has all of its /64."""
    client: str = scope["client"][0]
    try:
        ipaddress.IPv6Address(client)
    except ValueError:
        return client
    return str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))


class _WrongTokens:
    """The times of the last wrong tokens of each network."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, network: str) -> int:
        """Seconds until a token of this network is looked at again; 0: it is now."""
        times = self._times.get(network)
        if times is None or len(times) < _WRONG_TOKENS:
            return 0
        return max(0, math.ceil(times[0] + 60 - time.monotonic()))

    def add(self, network: str) -> None:
        times = self._times.setdefault(network, deque(maxlen=_WRONG_TOKENS))
        times.append(time.monotonic())
        self._times.move_to_end(network)
        if len(self._times) > 10_000:
            self._times.popitem(last=False)


class _Exchange:
    """A request's body within its limits, and an answer with the headers of each.

    status: 0 until the answer has begun.
    deadline: until which it has to begin.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        most: int,
        timeout_s: float,
        without_body: bool,
    ):
        self._receive, self._send = receive, send
        self._most, self._timeout_s, self._without_body = most, timeout_s, without_body
        self._start, self._seen, self._is_whole = time.monotonic(), 0, False
        self.status = 0
        self.deadline: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """Raises where a body grows beyond its limit, or hardly does.

        The time that a body takes is none of the application's.
        """
        if self._is_whole:  # it waits for the end of the connection
            return await self._receive()
        self._limit(None)
        left = self._start + self._seen / _SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s + min(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            why = f"the body stops, or comes slower than {_SLOWEST // 1000} kB/s"
            raise HTTPException(408, why, {"connection": "close"}) from None
        self._limit(self._timeout_s)
        self._is_whole = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise _too_large(self._most)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._limit(None)  # a slow reader is not an error
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            # Pages and images may change: a browser asks whether its copy is still good
            headers.setdefault("cache-control", "private, no-cache")
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)

    def _limit(self, seconds: float | None) -> None:
        """Gives an answer that has not begun so much time from now on; None: any."""
        if self.deadline is None or self.deadline.expired() or self.status:
            return
        now = asyncio.get_running_loop().time()
        self.deadline.reschedule(None if seconds is None else now + seconds)
