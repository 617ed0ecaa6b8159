"""Real connections: what is dropped, what HEAD gets, and addresses of either kind."""

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time

import pytest

from vse_jax.base.errors import InputError
from vse_search.serving import bound

pytestmark = pytest.mark.system

SERVER = """
import sys
from vse_search.guard import Guard
from vse_search.serving import bound, run

async def app(scope, receive, send):
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message["body"]
    headers = [(b"content-length", str(len(body) + 4).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"fine" + body})

host = sys.argv[1]
guard = Guard(
    app, host=host, token=None, cookie="c", upload_bytes=10**6, timeout_s=1.0
)
with bound(host, 0) as listener:
    port = listener.getsockname()[1]
    run(guard, listener, lambda: print(port, flush=True), idle_s=1)
"""


@contextlib.contextmanager
def listening(host: str):
    """The port of a server in a process of its own, that gives requests a second."""
    command = [sys.executable, "-c", SERVER, host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def port():
    with listening("127.0.0.1") as port:
        yield port


START = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GE",
        START,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHo",
        START + b"Content-Length: 5\r\n\r\n",
        START + b"Content-Length: 5\r\n\r\nab",
        START + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
    ],
)
def test_a_request_that_is_not_sent_to_its_end_is_dropped(port, sent):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(sent)
        while raw.recv(1000):  # until the server closes the connection
            pass


def test_a_header_that_drips_is_dropped(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:

        def drip():
            with contextlib.suppress(OSError):
                while True:
                    raw.send(b"X")
                    time.sleep(0.1)

        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        threading.Thread(target=drip, daemon=True).start()
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(1000) == b""


def ask(port, method, body=None, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, "/", body)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


def test_a_body_that_comes_slowly_is_taken(port):
    def pieces():
        for _ in range(15):
            time.sleep(0.1)
            yield bytes(1000)

    status, _, data = ask(port, "POST", pieces())
    assert (status, len(data)) == (200, 15_004)


def test_a_head_has_the_headers_of_a_get(port):
    (status, headers, data), (_, of_get, _) = ask(port, "HEAD"), ask(port, "GET")
    assert (status, data) == (200, b"")
    assert headers.keys() == of_get.keys()
    assert headers["content-length"] == of_get["content-length"] == "4"


def is_ours(host):
    with contextlib.suppress(InputError), bound(host, 0):
        return True


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
    ],
)
def test_addresses_of_either_kind_are_listened_at(host, asked):
    """Where the machine has IPv6 at all."""
    assert is_ours("127.0.0.1")
    if is_ours(host):
        with listening(host) as port:
            assert ask(port, "GET", host=asked)[0] == 200
