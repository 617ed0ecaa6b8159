"""Sockets and the loop that serves: uvicorn, as we want it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vse_jax import InputError
from vse_search.guard import App

_END_S = 2  # that requests which are being answered get when the server is to end
_IDLE_S = 30  # for which a connection may send nothing, or a part of a header


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with this address that does not listen yet.

    Raises:
        InputError: the address is in use, or none of this machine's.
    """
    where = f"config.search.host, port: {host}, {port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # By name: asyncio lets no packet wait (TCP_NODELAY) where it knows this is TCP.
        server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    with server:
        if os.name == "posix":  # or the address stays taken for minutes after an end
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(address)
        except OSError as error:
            raise InputError(f"{where}: {error.strerror}") from None
        yield server


def run(
    app: App,
    listener: socket.socket,
    ready: Callable[[], None],
    idle_s: int = _IDLE_S,
) -> None:
    """Serves until SIGTERM or SIGINT, which are raised again at the end.

    Args:
        app: the application.
        listener: of `bound`.
        ready: called as soon as requests are accepted.
        idle_s: for which a connection may send no request, or a part of its header.
    """

    class Protocol(_Protocol):
        seconds = idle_s

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,  # it would hold what is asked for
        proxy_headers=False,  # guard.py heeds them, with X-Forwarded-Host
        server_header=False,
        timeout_keep_alive=idle_s,
        timeout_graceful_shutdown=_END_S,
    )
    _Server(config, ready).run([listener])


class _Protocol(H11Protocol):
    """Drops a connection on which no request comes.

    Uvicorn drops one that is idle between two requests; one that begins a header and
    never ends it would stay for ever.
    """

    seconds = _IDLE_S
    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waits is not None:
            self._waits.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
        self._waits = self.loop.call_later(self.seconds, self._drop)

    def _drop(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await asyncio.to_thread(self._ready)
