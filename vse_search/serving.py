"""Serves an index until a signal ends it: the socket, and uvicorn as we want it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vse_jax import InputError, SearchConfig, printable
from vse_search import client
from vse_search.app import Server
from vse_search.encoder import Encoder
from vse_search.guard import is_local
from vse_search.searcher import Searcher

_END_S = 2  # that requests which are being answered get when the server is to end
_COMPUTES_S = 1.5  # for what computes when the connections are closed
_IDLE_S = 30  # for which a connection may send nothing, or a part of a header


def serve_index(
    options: SearchConfig, index: Path, load: Callable[[], Encoder]
) -> None:
    """Serves an index in the main thread.

    `load`, which gives its model, is called when the address and the index are good.
    Raises InputError as `commands.serve.serve`.
    """
    host, token = options.host.strip("[]"), options.token
    if not is_local(host) and not token:
        raise InputError(
            f"config.search.host: {host} can be reached from other machines; set "
            "config.search.token, too"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        listener = stack.enter_context(bound(host, options.port))
        port = listener.getsockname()[1]
        searcher = stack.enter_context(Searcher.open(options, index, load))
        searcher.warm_up()
        server = Server(searcher, options, port)

        def end() -> None:
            # Python waits for its threads, and a machine that shuts down does not: the
            # decoder of a huge image takes longer than it may.
            if not server.close(_COMPUTES_S):
                sys.stdout.flush()
                os._exit(0)

        stack.callback(end)
        # As this machine reaches the server.
        name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        url = f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"

        def ready() -> None:
            stack.enter_context(client.announced(index, url, token, options.engine))
            folder = printable(str(searcher.store.folder))
            images = f"{searcher.store.count():,} images of {folder}"
            print(f"{url} finds {images}; Ctrl-C ends it", flush=True)
            if options.open:
                webbrowser.open(url)

        run(server.app, listener, ready)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block and the program, with code 0."""

    def end(*_) -> None:
        raise SystemExit(0)

    before = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with this address that does not listen yet.

    Raises InputError if the address is in use, or none of this machine's.
    """
    with contextlib.ExitStack() as stack:
        try:
            kind = socket.SOCK_STREAM
            family, *_, address = socket.getaddrinfo(host, port, type=kind)[0]
            # With its protocol, or asyncio does not see that this is TCP, and lets
            # packets wait.
            server = socket.socket(family, kind, socket.IPPROTO_TCP)
            stack.enter_context(server)
            if os.name == "posix":  # or the address stays taken for minutes
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
        except OSError as error:
            where = f"config.search.host, port: {host}, {port}"
            raise InputError(f"{where}: {error.strerror}") from None
        yield server


def run(
    app: ASGIApp,
    listener: socket.socket,
    ready: Callable[[], None],
    idle_s: int = _IDLE_S,
) -> None:
    """Serves until SIGTERM or SIGINT, which are raised again at the end.

    `ready` is called as soon as requests are accepted. For `idle_s` a connection may
    send no request, or a part of its header.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            await asyncio.to_thread(ready)

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,  # it would hold what is asked for
        proxy_headers=False,  # guard.py reads them, with X-Forwarded-Host
        server_header=False,
        timeout_keep_alive=idle_s,
        timeout_graceful_shutdown=_END_S,
    )
    Server(config).run([listener])


class _Protocol(H11Protocol):
    """Drops a connection on which no request comes.

    Uvicorn drops one that is idle between two requests; one that begins a header and
    never ends it would stay for ever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._drop)

    def _drop(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
