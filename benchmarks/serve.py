"""Times of --mode=serve: queries through HTTP, and 10,000 mixed requests.

make demo
python main.py --workdir=runs/demo --mode=index \\
  --config.search.pictures=data/openmoji/images/128px
python -m benchmarks.serve [--workdir=runs/demo] [--requests=10000]

Every query is another caption of the demo, so that none is answered from memory. Server
and clients share the machine. The page: benchmarks/search_page.py.
"""

import contextlib
import http.client
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from vse_jax.command_line import PathParser
from vse_jax.config import load_config
from vse_jax.data.dataset import read_split
from vse_search.store import Store

_CLIENTS = (1, 8)
_QUERIES = 1000
_WARM = 2000  # mixed requests before memory is looked at


@contextlib.contextmanager
def server(workdir: Path) -> Iterator[tuple[int, int]]:
    """(process id, port) of --mode=serve in a process of its own, ready."""
    command = [sys.executable, "main.py", f"--workdir={workdir}", "--mode=serve"]
    command.append("--config.search.port=0")
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            print(f"ready after {time.perf_counter() - start:.1f} s: {line.strip()}")
            yield process.pid, int(line.split("/")[2].rpartition(":")[2])
        finally:
            start = time.perf_counter()
            process.terminate()
            process.wait()
            print(f"ended {time.perf_counter() - start:.1f} s after SIGTERM")


def time_queries(port: int, clients: int, queries: Sequence[str]) -> np.ndarray:
    """Seconds that each query took, asked by so many clients at a time."""

    def ask(some: Sequence[str]) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json"}
        seconds = []
        for query in some:
            body = json.dumps({"query": query, "top": 60})
            start = time.perf_counter()
            connection.request("POST", "/api/search", body, headers)
            response = connection.getresponse()
            data = response.read()
            seconds.append(time.perf_counter() - start)
            assert response.status == 200, data
        connection.close()
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        times = list(pool.map(ask, (queries[n::clients] for n in range(clients))))
    return np.concatenate(times)


class Request(NamedTuple):
    method: str
    target: str
    status: int  # that the answer has to have
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def requests(rng: random.Random, image: bytes) -> Iterator[Request]:
    """Yields good and bad requests without end; `image` is a file's content."""
    kind = (("Content-Type", "application/json"),)

    def search(status: int, **fields) -> Request:
        body = json.dumps(fields).encode()
        return Request("POST", "/api/search", status, body, kind)

    explained = json.dumps({"query": "a red car", "id": 1}).encode()
    id = str(rng.randint(1, 8))
    while True:
        color = rng.choice(("red", "green", "blue", "white"))
        yield rng.choice(
            (
                search(200, query=f"a {color} car {rng.random()}"),
                search(200, query=f"'{color}' - 0.5*'a dog'", before="2100-01-01"),
                search(200, like=[1], unlike=[2], top=3, min_score=0.1),
                search(400, query="?"),
                search(400, query=f"'{color} - 'dog"),
                search(400, query=color, unknown=1),
                search(404, like=[rng.randint(10**6, 10**9)]),
                Request("POST", "/api/search", 400, rng.randbytes(50), kind),
                Request("POST", "/api/search", 413, bytes(140_000), kind),
                Request("POST", "/api/explain", 200, explained, kind),
                Request("GET", f"/api/thumbnail/{id}", 200),
                Request("GET", f"/api/picture/{id}?full=1", 200),
                Request("GET", f"/api/data/{id}", 200),
                Request("GET", "/api/data/../../etc/passwd", 404),
                Request("GET", "/api/picture/%2e%2e%2fserver.json", 404),
                Request("GET", "/api/status", 200),
                Request("GET", "/api/status", 403, headers=(("Host", "evil.example"),)),
                Request("POST", "/api/upload", 200, image + rng.randbytes(2)),
                Request("POST", "/api/upload", 415, rng.randbytes(200)),
                Request("DELETE", "/api/data/1", 405),
            )
        )


def soak(
    port: int, count: int, image: bytes, threads: int = 8, seed: int = 0
) -> Counter[tuple[int, int]]:
    """Sends `count` requests, good and bad, by several threads.

    Returns:
        How many got each (status expected, status got); 0: there was no answer.
    """

    def work(number: int) -> Counter[tuple[int, int]]:
        found: Counter[tuple[int, int]] = Counter()
        source = requests(random.Random(1000 * seed + number), image)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(count // threads):
            method, target, wanted, body, headers = next(source)
            try:
                connection.request(method, target, body, dict(headers))
                response = connection.getresponse()
                data = response.read()
                got = response.status
                assert got < 400 or json.loads(data).keys() == {"error"}
            except (OSError, http.client.HTTPException):
                connection.close()
                got = 0
            found[wanted, got] += 1
        connection.close()
        return found

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)), start=Counter())


def resident(pid: int) -> int:
    """Bytes of a process's memory that are in RAM and its own."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * 4096


def main(_) -> None:
    workdir, count = flags.FLAGS.workdir, flags.FLAGS.requests
    config = load_config(workdir / "config.json")
    captions = iter(dict.fromkeys(read_split(config, "train").captions))
    with Store.open(workdir / "index", read_only=True) as store:
        path = store.images([1])[1].path
        assert path is not None
        image = (store.folder / path).read_bytes()
    with server(workdir) as (pid, port):
        for clients in _CLIENTS:
            queries = list(itertools.islice(captions, _QUERIES))
            seconds = time_queries(port, clients, queries)
            p50, p99 = 1000 * np.percentile(seconds, [50, 99])
            print(f"{clients} clients: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        soak(port, _WARM, image)
        before, start = resident(pid), time.perf_counter()
        found = soak(port, count, image, seed=1)
        took = time.perf_counter() - start
        growth = resident(pid) / before - 1
    wrong = sum(n for (expected, got), n in found.items() if expected != got)
    lost = sum(n for (_, got), n in found.items() if got == 0)
    print(
        f"{found.total():,} mixed requests in {took:.0f} s: {lost} without an "
        f"answer, {wrong} with a wrong one; memory {before / 1e6:.0f} MB, {growth:+.1%}"
    )


if __name__ == "__main__":
    flags.DEFINE(PathParser(), "workdir", "runs/demo", "A run with an index.")
    flags.DEFINE_integer("requests", 10_000, "Of the mixed ones.")
    app.run(main)
