"""As much of the Hugging Face Hub as this package needs, on 127.0.0.1."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens
Files = dict[str, bytes]


class StandIn(http.server.BaseHTTPRequestHandler):
    """Serves `repositories`, USER/NAME → path → content; one revision each, main.

    `sent`: the files that it sent, USER/NAME/path.
    """

    repositories: dict[str, Files]
    private: set[str]
    gated: set[str]
    sent: list[str]

    def do_HEAD(self):
        self._read()

    def do_GET(self):
        self._read()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token != WRITER:
            status = 403 if token == READER else 401
            return self._answer(status, {"error": "You don't have the rights"})
        if self.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        name, action = re.fullmatch(
            r"/api/models/(\w+/[\w-]+)/(preupload|commit)/main", self.path
        ).groups()
        if action == "preupload":
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer(
                200, {"files": [{"path": f["path"], **mode} for f in files]}
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                content = base64.b64decode(value["content"])
                self.repositories[name][value["path"]] = content
        sha = self._sha(name)
        url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        return self._answer(200, {"commitUrl": url, "commitOid": sha})

    def _validate(self, card: str):
        try:
            header = yaml.safe_load(card.split("---\n")[1])
            assert {"library_name", "tags"} <= header.keys()
        except Exception as error:
            return self._answer(400, {"errors": [{"message": str(error)}]})
        return self._answer(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict):
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.repositories
        self.repositories.setdefault(name, {})
        if asked.get("visibility") == "private":
            self.private.add(name)
        url = f"http://{self.headers['Host']}/{name}"
        return self._answer(409 if there else 200, {"url": url})

    def _read(self):
        api = r"/api/models/(\w+/[\w-]+)(?:/(tree|revision)/(\w+))?"
        found = re.fullmatch(api, self.path.partition("?")[0])
        file = re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", self.path)
        if not (found or file):
            return self._answer(404, {"error": f"{self.path}: not known here"})
        name, revision = (found[1], found[3]) if found else (file[1], file[2])
        files = self.repositories.get(name)
        if files is None:
            return self._answer(404, {"error": "no"}, "RepoNotFound")
        if revision not in (None, "main", self._sha(name)):
            return self._answer(404, {"error": "no"}, "RevisionNotFound")
        if file:
            return self._file(name, file[3])
        listed = [
            {"type": "file", "path": path, "size": len(x), "oid": _hash(x)}
            for path, x in files.items()
        ]
        info = {"id": name, "sha": self._sha(name), "siblings": []}
        return self._answer(200, listed if found[2] == "tree" else info)

    def _file(self, name: str, path: str):
        content = self.repositories[name].get(path)
        if content is None:
            return self._answer(404, {"error": "no"}, "EntryNotFound")
        if name in self.gated:
            return self._answer(403, {"error": "no"}, "GatedRepo")
        if self.command == "GET":
            self.sent.append(f"{name}/{path}")
        headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": self._sha(name)}
        return self._send(200, content, headers)

    def _sha(self, name: str) -> str:
        return _hash(repr(sorted(self.repositories[name].items())).encode())[:40]

    def _answer(self, status: int, content, code: str | None = None):
        headers = {"Content-Type": "application/json"}
        if code:
            headers |= {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, json.dumps(content).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def serving(repositories: dict[str, Files]) -> Iterator[tuple[str, type[StandIn]]]:
    """(address, what it serves) of a stand-in that runs during the block."""
    holds = {"repositories": repositories, "private": set(), "gated": set(), "sent": []}
    handler = type("Hub", (StandIn,), holds)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()
