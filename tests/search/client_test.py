"""Finding a server through its file, and what is made of its answers."""

import http.server
import json
import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest

from tests.helpers.users import folder_of_everybody, ordinary_user
from vse_jax.base.errors import InputError
from vse_search.client import announced, running


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; notes what it was asked."""

    answers: ClassVar = {
        "/api/status": (200, {"pictures": 1}),
        "/api/search": (200, {"hits": [{"id": 1, "path": "a.jpg", "score": 0.5}]}),
        "/api/upload": (415, {"error": "no picture"}),
    }
    token = None

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        Handler.token = self.headers.get("authorization")
        status, answer = self.answers[self.path]
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_server_is_found_while_it_runs(tmp_path, url):
    with announced(tmp_path, url, "secret"):
        assert (tmp_path / "server.json").stat().st_mode & 0o777 == 0o600
        client = running(tmp_path)
        assert client.search(query="a")["hits"][0]["path"] == "a.jpg"
        assert Handler.token == "Bearer secret"
    assert running(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_server_leaves_the_file_of_a_later_one(tmp_path, url):
    waiting = [sys.executable, "-c", "input()"]
    with announced(tmp_path, url, None), subprocess.Popen(waiting, stdin=-1) as later:
        facts = {"url": "http://127.0.0.1:1/", "pid": later.pid, "token": None}
        (tmp_path / "server.json").write_text(json.dumps(facts))
        assert running(tmp_path) is None  # nobody listens there
        later.kill()
    assert (tmp_path / "server.json").exists()


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "facts",
    [
        {"pid": "dead"},
        {"url": "file:///etc/passwd"},
        {"url": "http://127.0.0.1:x/"},
        {"url": 3},
        {"more": 1},
        "text",
    ],
)
def test_a_file_that_no_server_stands_behind_is_no_server(tmp_path, url, facts):
    good = {"url": url, "pid": os.getpid(), "token": None}
    content = good | facts if isinstance(facts, dict) else facts
    if isinstance(content, dict) and content["pid"] == "dead":
        content["pid"] = ended_process()
    path = tmp_path / "server.json"
    path.write_text(json.dumps(content))
    assert running(tmp_path) is None
    path.write_text(json.dumps(good))
    assert running(tmp_path) is not None


def test_the_file_of_another_user_is_not_trusted(tmp_path, url, monkeypatch):
    with announced(tmp_path, url, None):
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert running(tmp_path) is None


def test_errors_are_the_servers_own_lines(tmp_path, url, monkeypatch):
    picture = tmp_path / "a.jpg"
    with announced(tmp_path, url, None):
        client = running(tmp_path)
    with pytest.raises(InputError, match=r"a\.jpg: No such file"):
        client.upload(picture)
    picture.write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.jpg: no picture$"):
        client.upload(picture)
    monkeypatch.setitem(Handler.answers, "/api/search", (200, b"<html>"))
    with pytest.raises(InputError, match="not our server"):
        client.search(query="a")


def test_a_server_that_has_gone_is_an_error(tmp_path, url):
    with announced(tmp_path, "http://127.0.0.1:1/", None):
        assert running(tmp_path) is None
    with announced(tmp_path, url, None):
        client = running(tmp_path)
    client.url = "http://127.0.0.1:1/"
    with pytest.raises(InputError, match="does not answer"):
        client.search(query="a")


def test_where_nothing_may_be_written_it_is_said_and_all_goes_on(url, caplog):
    with folder_of_everybody() as folder:
        (folder / "own").mkdir()
        folder.chmod(0o555)
        with ordinary_user(folder / "own"), announced(folder, url, None):
            assert running(folder) is None
        folder.chmod(0o755)
    assert "server.json: Permission denied; --mode=search will not find" in caplog.text
