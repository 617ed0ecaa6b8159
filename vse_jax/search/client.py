"""Talks to the server of an index that runs on this machine, if there is one."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_bytes, write_atomically

_FILE = "server.json"
MOST_HITS = 1000  # that a server gives at a time
_SECONDS = 60.0  # longer than a server lets a request wait


class Address(NamedTuple):
    """Where a server is, and what it asks for."""

    url: str
    pid: int
    token: str | None


@contextlib.contextmanager
def announced(index: Path, url: str, token: str | None) -> Iterator[None]:
    """Lets the searches of this user find the server, for the block.

    Where nothing may be written, they do without it: a log line says so.
    """
    path = index / _FILE
    content = json.dumps(Address(url, os.getpid(), token)._asdict()) + "\n"
    try:
        write_atomically(path, content.encode(), mode=0o600)
    except OSError as error:
        logging.warning(
            "%s: %s; --mode=search will not find this server", path, error.strerror
        )
    try:
        yield
    finally:
        address = _read(index)
        if address is not None and address.pid == os.getpid():
            path.unlink(missing_ok=True)


def running(index: Path) -> "Client | None":
    """The client of the server of an index; None: none answers."""
    address = _read(index)
    client = None if address is None else Client(address)
    return client if client is not None and client.answers() else None


def _read(index: Path) -> Address | None:
    """What a server wrote; None: nothing that this user may trust."""
    path = index / _FILE
    try:
        if path.stat().st_uid != os.getuid():
            return None
        address = Address(**json.loads(path.read_bytes()))
        urlsplit(address.url).port  # noqa: B018 (raises at none)
        os.kill(address.pid, 0)  # raises where no such process is left
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return address


class Client:
    """A server, asked through its JSON API; JAX is not needed for it."""

    def __init__(self, address: Address):
        self.url = address.url
        self._token = address.token

    def answers(self) -> bool:
        """Whether it does."""
        try:
            self._ask("GET", "/api/status")
        except (InputError, OSError):
            return False
        return True

    def search(self, **body: Any) -> list[dict[str, Any]]:
        """Hits of /api/search.

        Raises:
            InputError: what the server says, or that it does not answer.
        """
        return self._post("/api/search", json.dumps(body).encode())["hits"]

    def upload(self, path: Path) -> str:
        """Id of a picture that the server now has.

        Raises:
            InputError: no such file, or what the server says of it.
        """
        data = read_bytes(path)
        try:
            return self._post("/api/upload", data)["upload"]
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            return self._ask("POST", path, body)
        except OSError as error:
            raise InputError(
                f"{self.url}: the server does not answer ({error})"
            ) from None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        place = urlsplit(self.url)
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        host, port = place.hostname or "", place.port
        connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (http.client.HTTPException, ValueError) as error:
            raise InputError(f"{self.url}: not our server ({error!r})") from None
        finally:
            connection.close()
        if response.status != 200:
            raise InputError(str(answer.get("error", response.status)))
        return answer
