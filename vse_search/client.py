"""Talks to the server of an index that runs on this machine, if there is one."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from absl import logging

from vse_jax import InputError, read_bytes, write_atomically

_FILE = "server.json"
MOST_HITS = 1000  # that a server gives at a time
_ANSWERS_S = 2.0  # within which one that works says what it serves
_SEARCHES_S = 60.0  # longer than a server lets a request wait


class Unanswered(InputError):
    """A server gave no answer, or refused what a search without it would do."""


class Address(NamedTuple):
    """Where a server is, what it asks for, and the engine that it searches with."""

    url: str
    pid: int
    token: str | None
    engine: str | None = None


@contextlib.contextmanager
def announced(
    index: Path, url: str, token: str | None, engine: str | None = None
) -> Iterator[None]:
    """Lets the searches of this user find the server, for the block; where the index
    cannot be written to, they search without it."""
    path = index / _FILE
    content = json.dumps(Address(url, os.getpid(), token, engine)._asdict()) + "\n"
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


def running(index: Path, engine: str | None = None) -> "Client | None":
    """The client of the server of an index; None: none answers, or none that searches
    with this engine (None: any)."""
    address = _read(index)
    if address is None or (engine and address.engine not in (engine, None)):
        return None
    client = Client(address.url, address.token)
    try:
        client.ask("GET", "/api/status", seconds=_ANSWERS_S)
    except Unanswered as error:
        logging.info("%s; searching without it", error)
        return None
    return client


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


@dataclass
class Client:
    """A server, asked through its JSON API; JAX is not needed for it."""

    url: str
    token: str | None

    def search(self, **body: Any) -> list[dict[str, Any]]:
        """Hits of /api/search; raises as `ask`."""
        return self.ask("POST", "/api/search", json.dumps(body).encode())["hits"]

    def upload(self, path: Path) -> str:
        """Id of an image that the server now has; raises as `ask`, naming the file."""
        data = read_bytes(path)
        try:
            return self.ask("POST", "/api/upload", data)["upload"]
        except InputError as error:
            raise type(error)(f"{path}: {error}") from None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        seconds: float = _SEARCHES_S,
    ) -> dict[str, Any]:
        """The server's answer.

        Raises:
            InputError: what the server says; Unanswered where it does not, or cannot
                do what is asked.
        """
        place = urlsplit(self.url)
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        host, port = place.hostname or "", place.port
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            why = f"in {seconds:g} s" if isinstance(error, TimeoutError) else error
            raise Unanswered(
                f"{self.url}: the server does not answer ({why})"
            ) from None
        except (http.client.HTTPException, ValueError) as error:
            raise Unanswered(f"{self.url}: not our server ({error!r})") from None
        finally:
            connection.close()
        if response.status == 200 and isinstance(answer, dict):
            return answer
        reason = answer.get("error") if isinstance(answer, dict) else None
        kind = InputError if response.status == 400 else Unanswered
        raise kind(str(reason or f"{self.url}: status {response.status}"))
