"""Search by a PostgreSQL server with pgvector.

    python -m benchmarks.servers [--count=100000]

Starts a server, kills it with -9 when half of the vectors (768 values) are there,
starts it again, sends the rest and makes the graph. Then asks for the ten best of all,
of a tenth by date, and of a hundredth by folder. Prints a table and keeps it in
benchmarks/results/MACHINE-servers.json.
"""

import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
from absl import app, flags

from benchmarks import report, search
from tests.helpers import postgres
from vse_jax.base.errors import InputError
from vse_jax.command_line import errors_on_one_line
from vse_search.engines import ExactEngine, make_engine
from vse_search.store import ALL, Filters, Store

DIM, TOP, QUERIES, WARM, THREADS, SECONDS = 768, 10, 50, 5, 4, 10
ASKED = {
    "all": ALL,
    "a tenth by date": Filters(after="2019-01-01"),
    "a hundredth by folder": Filters(folder="07"),
}


class Postgres:
    """A server of its own in `folder`, filled and asked by our engine."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._server = store, postgres.Server(folder)
        self._url = f"{self._server.url}&options=-c%20maintenance_work_mem%3D1GB"
        self.kill, self.start = self._server.kill, self._server.start
        self._engine: Any = None

    @property
    def pid(self) -> int:
        return self._server.pid

    def fill(self) -> None:
        self._engine = make_engine(self._store, "postgres", self._url)

    def count(self) -> int:
        with psycopg.connect(self._url) as connection:
            sql = f"SELECT count(*) FROM vse_jax_{self._store.uid}.images"
            return connection.execute(sql).fetchall()[0][0]

    def search(self, query: np.ndarray, filters: Filters) -> list[int]:
        hits = self._engine.search(query, top=TOP, filters=filters)
        return [hit.id for hit in hits]


_COUNT = flags.DEFINE_integer("count", 100_000, "Vectors.", lower_bound=30_000)


def measure(server: Postgres, store: Store) -> dict[str, Any]:
    """Seconds to fill and to come back, share found, milliseconds, memory."""
    filled: dict[str, float] = {}
    start = time.perf_counter()
    first = threading.Thread(target=_fill_until_killed, args=(server,))
    first.start()
    while True:
        with contextlib.suppress(psycopg.Error):
            if (had := server.count()) >= store.count() / 2:
                break
        time.sleep(0.2)
    server.kill()
    first.join()
    filled["fill_s"] = time.perf_counter() - start
    start = time.perf_counter()
    server.start()
    filled["lost"] = max(had - server.count(), 0)
    filled["back_s"] = time.perf_counter() - start
    start = time.perf_counter()
    server.fill()
    filled["fill_s"] += time.perf_counter() - start
    print(filled, server.count(), flush=True)
    exact = ExactEngine(store)
    queries = vectors(QUERIES, seed=10**9)
    asked = {}
    for name, filters in ASKED.items():
        times, found = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(server.search(query, filters))
            times.append(1e3 * (time.perf_counter() - start))
        best = [
            {hit.id for hit in exact.search(query, top=TOP, filters=filters)}
            for query in queries
        ]
        both = zip(best, found, strict=True)
        asked[name] = {
            "p50_ms": float(np.median(times[WARM:])),
            "found": sum(len(a.intersection(b)) for a, b in both) / QUERIES / TOP,
        }
        print(name, asked[name], flush=True)
    return filled | {"asked": asked, "per_s": _per_second(server, queries)}


def _fill_until_killed(server: Postgres) -> None:
    with contextlib.suppress(InputError):
        server.fill()


def _per_second(server: Postgres, queries: np.ndarray) -> float:
    """Queries of all images that some threads get answered."""
    counts, end = [0] * THREADS, time.perf_counter() + SECONDS

    def ask(thread: int) -> None:
        while time.perf_counter() < end:
            server.search(queries[counts[thread] % QUERIES], ALL)
            counts[thread] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def vectors(count: int, seed: int) -> np.ndarray:
    """float32 [count, DIM], of length 1: those of benchmarks.search, cut."""
    found = search.vectors(count, seed)[:, :DIM]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _memory_mb(pid: int) -> float:
    """Of a process and its children; what they share counts once."""
    server = psutil.Process(pid)
    family = [server, *server.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in family) / 1e6


def table(results: dict[str, Any]) -> str:
    """All rows in Markdown."""
    lines = [
        f"| vectors | {' | '.join(ASKED)} | queries/s | filled after "
        "| memory | disk | kill -9: lost, back after |",
        "|---" * (len(ASKED) + 6) + "|",
    ]
    for count, row in results["counts"].items():
        asked = [
            f"{found['p50_ms']:.1f} ms, {found['found']:.1%}"
            for found in row["asked"].values()
        ]
        lines.append(
            f"| {int(count):,} | {' | '.join(asked)} "
            f"| {row['per_s']:.0f} | {row['fill_s']:.0f} s "
            f"| {row['memory_mb']:,.0f} MB | {row['disk_mb']:,.0f} MB "
            f"| {row['lost']:,}, {row['back_s']:.1f} s |"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def _index(count: int) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        search.write_index(path, count, DIM, vectors)
        with Store.open(path, read_only=True) as store:
            yield store


def main(_: list[str]) -> None:
    path, results = report.read_results("counts", "-servers")
    with _index(_COUNT.value) as store, postgres.folder_of_everybody() as folder:
        server = Postgres(store, folder)
        try:
            row = measure(server, store)
            row["memory_mb"] = _memory_mb(server.pid)
            du = subprocess.check_output(["du", "-sm", folder], text=True)
            row["disk_mb"] = int(du.split()[0])
        finally:
            server.kill()
    results["counts"][str(_COUNT.value)] = row
    report.write_results(path, results)
    print(table(results))


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
