"""A server in a process of its own, as it is started, asked and ended."""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.serve import resident, soak
from tests.helpers import searching
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_search import client
from vse_search.commands.serve import serve
from vse_search.serving import serve_index
from vse_search.store import Store

pytestmark = pytest.mark.system


class Running(NamedTuple):
    process: subprocess.Popen
    port: int
    index: Path


@contextlib.contextmanager
def started(folder: Path, *options: str):
    """A server of tests.helpers.searching that says it listens."""
    command = [sys.executable, "-m", "tests.helpers.searching", str(folder), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), process.communicate()
            port = int(line.removeprefix("http://127.0.0.1:").partition("/")[0])
            yield Running(process, port, folder / "index")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with started(tmp_path_factory.mktemp("served")) as server:
        yield server


def ask(port: int, method: str, target: str, body=b"", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


def test_it_listens_only_when_it_is_ready(running):
    assert ask(running.port, "GET", "/api/status")[0] == 200


def test_searches_of_the_user_find_it(running):
    path = running.index / "server.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = client.running(running.index)
    assert found.url == f"http://127.0.0.1:{running.port}/"
    hits = found.search(query="a red car", top=1)["hits"]
    assert [hit["path"] for hit in hits] == ["red.jpg"]


def test_a_large_upload_is_refused_whoever_sends_it(running):
    status, body = ask(running.port, "POST", "/api/upload", bytes(20_000_001))
    assert (status, json.loads(body)) == (413, {"error": "larger than 20 MB"})
    pieces = (bytes(1_000_000) for _ in range(40))
    status, body = ask(running.port, "POST", "/api/upload", pieces)
    assert (status, json.loads(body)) == (413, {"error": "larger than 20 MB"})


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET http://evil.example/api/status HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    ],
)
def test_nonsense_gets_an_error_and_no_picture(running, sent):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
        raw.sendall(sent)
        answer = raw.recv(100)
    assert answer.startswith(b"HTTP/1.1 4")


def test_1000_requests_are_all_answered_in_constant_memory(running):
    check_soak(running, 1000)


@pytest.mark.slow
def test_10000_requests_are_all_answered_in_constant_memory(running):
    check_soak(running, 10_000)


def check_soak(running: Running, count: int) -> None:
    picture = (running.index.parent / "pictures" / "green.jpg").read_bytes()
    soak(running.port, 800, picture)  # caches fill
    before = resident(running.process.pid)
    found = soak(running.port, count, picture, seed=1)
    assert all(expected == got for expected, got in found), found
    assert found.total() == count
    assert resident(running.process.pid) < 1.05 * before


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(tmp_path, ended_by):
    with started(tmp_path) as (process, port, index):
        idle = http.client.HTTPConnection("127.0.0.1", port)
        idle.request("GET", "/api/status")
        idle.getresponse().read()  # the connection stays
        start = time.monotonic()
        process.send_signal(ended_by)
        out, err = process.communicate(timeout=5)
        assert time.monotonic() - start < 5
        idle.close()
    assert (process.returncode, out, err) == (0, "", "")
    assert not (index / "server.json").exists()


def test_it_ends_although_the_model_computes(tmp_path):
    with started(tmp_path, "0", "30") as (process, port, _):
        waiting = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"query": "red"})
        headers = {"Content-Type": "application/json"}
        waiting.request("POST", "/api/search", body, headers)
        time.sleep(0.3)
        process.terminate()
        process.communicate(timeout=5)
        waiting.close()
    assert process.returncode == 0


def found(port: int, **body) -> list[dict]:
    headers = {"Content-Type": "application/json"}
    status, answer = ask(port, "POST", "/api/search", json.dumps(body), headers)
    assert status == 200, answer
    return json.loads(answer)["hits"]


@pytest.mark.parametrize("kept", [["green", "white"], [*searching.COLOURS]])
def test_it_follows_an_index_that_is_made_anew(tmp_path, kept):
    with started(tmp_path) as (_, port, index):
        assert found(port, query="green", top=1)[0]["path"] == "green.jpg"
        shutil.rmtree(index)
        status, body = ask(port, "GET", "/api/status")
        line = "index: no index; make one with --mode=index"  # and not where
        assert (status, json.loads(body)) == (503, {"error": line})

        pictures = tmp_path / "others"
        for number, colour in enumerate(kept):
            searching.draw(pictures / f"{number} {colour}.png", colour)
        searching.make_index(pictures, index)

        status = json.loads(ask(port, "GET", "/api/status")[1])
        assert (status["pictures"], status["folder"]) == (len(kept), "others")
        for id, name in enumerate(sorted(p.name for p in pictures.iterdir()), 1):
            (hit,) = found(port, like=[id], top=1)
            assert (hit["id"], hit["path"]) == (id, name)
            assert hit["score"] == pytest.approx(1)
            assert ask(port, "GET", f"/api/thumbnail/{id}")[0] == 200
            body = json.dumps({"query": "green", "id": id})
            headers = {"Content-Type": "application/json"}
            why = json.loads(ask(port, "POST", "/api/explain", body, headers)[1])
            assert sum(map(sum, why["cells"])) == pytest.approx(why["similarity"])


def test_it_follows_a_folder_that_moves(tmp_path):
    with started(tmp_path) as (_, port, index):
        assert ask(port, "GET", "/api/thumbnail/1")[0] == 200
        moved = (tmp_path / "pictures").rename(tmp_path / "moved")
        assert ask(port, "GET", "/api/thumbnail/1")[0] == 404
        with Store.open(index, read_only=False) as store:
            store.move(moved)
        assert ask(port, "GET", "/api/thumbnail/1")[0] == 200
        assert json.loads(ask(port, "GET", "/api/status")[1])["folder"] == "moved"


# ---- What cannot be served -----------------------------------------------------------


def not_loaded():
    raise AssertionError("the model is loaded before the address is checked")


def test_a_port_in_use_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"{port}: Address already in use"):
            serve_index(searching.options(port=port), tmp_path, not_loaded)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "nas", ""])
@pytest.mark.parametrize("token", [None, ""])
def test_others_may_reach_it_with_a_token_only(tmp_path, host, token):
    options = searching.options(host=host, token=token)
    with pytest.raises(InputError, match=r"config\.search\.token"):
        serve_index(options, tmp_path, not_loaded)


def test_an_address_of_another_machine_is_an_error(tmp_path):
    options = searching.options(host="192.0.2.1", token="secret", port=0)
    with pytest.raises(InputError, match=r"192\.0\.2\.1"):
        serve_index(options, tmp_path, not_loaded)


def test_a_folder_without_an_index_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no index"):
        serve_index(searching.options(port=0), tmp_path, not_loaded)


def test_an_index_of_another_model_is_an_error(tmp_path):
    pictures = tmp_path / "in"
    searching.draw(pictures / "red.png", "red")
    index = searching.make_index(pictures, tmp_path / "index")
    other = searching.ColourModel()
    other.fingerprint = "other"
    with pytest.raises(InputError, match="another model"):
        serve_index(searching.options(port=0), index, lambda: other)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "vse_search.serving", raising=False)
    monkeypatch.delattr("vse_search.serving", raising=False)
    with pytest.raises(
        InputError,
        match=r"--mode=serve: the package uvicorn is not .* make setup-search",
    ):
        serve(draft(), tmp_path)
