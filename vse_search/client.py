"""Talks to the server of an index that runs on this machine, if there is one."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from absl import logging

from vse_jax import InputError, read_bytes, write_atomically

_FILE = "server.json"
MOST_HITS = 1000  # that a server gives at a time
_ANSWERS_S = 2.0  # within which one that works says what it serves
_SEARCHES_S = 60.0  # longer than a server lets a request wait


class Unanswered(InputError):
    """A server gave no answer, or refused what a search without it would do."""


@dataclass
class Client:
    """A server, asked through its JSON API; JAX is not needed for it."""

    url: str
    pid: int
    token: str | None
    engine: str | None = None  # that it searches with

    def search(self, **body: Any) -> dict[str, Any]:
        """The answer of /api/search; raises as `ask`."""
        return self.ask("POST", "/api/search", json.dumps(body).encode())

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


@contextlib.contextmanager
def announced(
    index: Path, url: str, token: str | None, engine: str | None = None
) -> Iterator[None]:
    """Lets the searches of this user find the server, for the block; where the index
    cannot be written to, they search without it."""
    path = index / _FILE
    content = json.dumps(asdict(Client(url, os.getpid(), token, engine))) + "\n"
    try:
        write_atomically(path, content.encode(), mode=0o600)
    except OSError as error:
        logging.warning(
            "%s: %s; --mode=search will not find this server", path, error.strerror
        )
    try:
        yield
    finally:
        written = _read(index)
        if written is not None and written.pid == os.getpid():
            path.unlink(missing_ok=True)


def running(index: Path, engine: str | None = None) -> Client | None:
    """The client of the server of an index; None: none answers, or none that searches
    with this engine (None: any)."""
    client = _read(index)
    if client is None or (engine and client.engine not in (engine, None)):
        return None
    try:
        client.ask("GET", "/api/status", seconds=_ANSWERS_S)
    except Unanswered as error:
        logging.info("%s; searching without it", error)
        return None
    return client


def _read(index: Path) -> Client | None:
    """What a server wrote; None: nothing that this user may trust."""
    path = index / _FILE
    try:
        if path.stat().st_uid != os.getuid():
            return None
        client = Client(**json.loads(path.read_bytes()))
        urlsplit(client.url).port  # noqa: B018 (raises at none)
        os.kill(client.pid, 0)  # raises where no such process is left
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return client
