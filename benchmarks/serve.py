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
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from benchmarks.soak import resident, soak
from vse_jax.command_line import PathParser
from vse_jax.config import load_config
from vse_jax.data.dataset import read_split
from vse_search.store import Store

_WORKDIR = flags.DEFINE(PathParser(), "workdir", "runs/demo", "A run with an index.")
_REQUESTS = flags.DEFINE_integer("requests", 10_000, "Of the mixed ones.")
_CLIENTS = (1, 8)
_QUERIES = 1000
_WARM = 2000  # mixed requests before memory is looked at


class Running(NamedTuple):
    process: subprocess.Popen
    port: int


@contextlib.contextmanager
def server(workdir: Path) -> Iterator[Running]:
    """--mode=serve in a process of its own, ready."""
    command = [sys.executable, "main.py", f"--workdir={workdir}", "--mode=serve"]
    command.append("--config.search.port=0")
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            print(f"ready after {time.perf_counter() - start:.1f} s: {line.strip()}")
            yield Running(process, int(line.split("/")[2].rpartition(":")[2]))
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


def time_mixed(running: Running, index: Path, count: int) -> None:
    """Prints what became of many requests, good and bad, and of the memory."""
    with Store.open(index, read_only=True) as store:
        path = store.images([1])[1].path
        assert path is not None
        image = (store.folder / path).read_bytes()
    soak(running.port, _WARM, image)
    before = resident(running.process.pid)
    start = time.perf_counter()
    found = soak(running.port, count, image, seed=1)
    seconds = time.perf_counter() - start
    growth = resident(running.process.pid) / before - 1
    wrong = sum(n for (expected, got), n in found.items() if expected != got)
    lost = sum(n for (_, got), n in found.items() if got == 0)
    print(
        f"{found.total():,} mixed requests in {seconds:.0f} s: {lost} without an "
        f"answer, {wrong} with a wrong one; memory {before / 1e6:.0f} MB, {growth:+.1%}"
    )


def main(_) -> None:
    workdir = _WORKDIR.value
    config = load_config(workdir / "config.json")
    captions = iter(dict.fromkeys(read_split(config, "train").captions))
    with server(workdir) as running:
        for clients in _CLIENTS:
            queries = list(itertools.islice(captions, _QUERIES))
            seconds = time_queries(running.port, clients, queries)
            p50, p99 = 1000 * np.percentile(seconds, [50, 99])
            print(f"{clients} clients: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        time_mixed(running, workdir / "index", _REQUESTS.value)


if __name__ == "__main__":
    app.run(main)
