"""Search by a server: PostgreSQL with pgvector, and Milvus Lite, on the same vectors.

    pip install pymilvus==3.0.2 milvus-lite==3.2.2
    python -m benchmarks.servers [--count=100000] [--servers=postgres,milvus]

Starts each server, kills it with -9 when half of the vectors (768 values) are there,
starts it again, sends the rest and makes the graph. Then asks for the ten best of all,
of a tenth by date, and of a hundredth by folder. Prints a table and keeps it in
benchmarks/results/MACHINE-servers.json.

PostgreSQL is filled and asked by our engine. How Milvus would be, stands here alone: it
was tried and not kept (docs/search.md).
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import psycopg
from absl import app, flags

from benchmarks import report, search
from tests.helpers import postgres
from vse_jax.base.errors import check_choice
from vse_jax.command_line import errors_on_one_line
from vse_search.engines import ExactEngine, make_engine
from vse_search.store import ALL, Filters, Store

DIM, TOP, QUERIES, WARM, THREADS, SECONDS = 768, 10, 50, 5, 4, 10
ASKED = {
    "all": ALL,
    "a tenth by date": Filters(after="2019-01-01"),
    "a hundredth by folder": Filters(folder="07"),
}


class Way(Protocol):
    """A server of one kind, started with an empty folder."""

    pid: int

    def fill(self) -> None:
        """Sends what is not there yet, then makes the graph; raises when killed."""

    def count(self) -> int:
        """Vectors that are there."""

    def kill(self) -> None:
        """With -9."""

    def start(self) -> None:
        """Returns when it answers."""

    def search(self, query: np.ndarray, filters: Filters) -> list[int]:
        """Ids of the ten best."""


class Postgres:
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


class Milvus:
    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.start()
        from pymilvus import DataType, MilvusClient  # noqa: PLC0415 (not in the locks)

        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("taken", DataType.INT64)
        texts = {"element_type": DataType.VARCHAR, "max_capacity": 64}
        schema.add_field("folders", DataType.ARRAY, max_length=512, **texts)
        self._client.create_collection("images", schema=schema)

    def start(self) -> None:
        from pymilvus import MilvusClient  # noqa: PLC0415 (not in the locks)

        program = str(Path(sys.executable).with_name("milvus-lite"))
        options = ["--data-dir", str(self._folder), "--host", "127.0.0.1"]
        options += ["--port", str(self._port)]
        self._process = subprocess.Popen([program, "server", *options])
        self.pid = self._process.pid
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port)).close()
                break
            time.sleep(0.1)
        self._client: Any = MilvusClient(f"http://127.0.0.1:{self._port}", timeout=600)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def fill(self) -> None:
        snapshot, known = self._store.snapshot(), self._store.images()
        for start in range(self.count(), len(snapshot.ids), 1000):
            some = slice(start, start + 1000)
            ids, rows = snapshot.ids[some].tolist(), snapshot.rows[some]
            batch = [
                {
                    "id": id,
                    "vector": snapshot.matrix[row],
                    "taken": int((known[id].taken or "")[:10].replace("-", "")),
                    "folders": [known[id].path.partition("/")[0]],
                }
                for id, row in zip(ids, rows, strict=True)
            ]
            self._client.upsert("images", batch)
        self._client.flush("images")
        graph = self._client.prepare_index_params()
        sizes = {"M": 16, "efConstruction": 64}  # pgvector's
        graph.add_index("vector", index_type="HNSW", metric_type="IP", params=sizes)
        self._client.create_index("images", graph)
        self._client.load_collection("images")

    def count(self) -> int:
        return self._client.get_collection_stats("images")["row_count"]

    def search(self, query: np.ndarray, filters: Filters) -> list[int]:
        condition = "taken >= 20190101" if filters.after else ""
        if filters.folder:
            condition = f'array_contains(folders, "{filters.folder}")'
        [hits] = self._client.search(
            "images",
            [query],
            limit=TOP,
            filter=condition,
            search_params={"params": {"ef": 200}},  # our engine's
        )
        return [hit["id"] for hit in hits]


WAYS: dict[str, tuple[str, Any]] = {
    "postgres": ("PostgreSQL 18, pgvector", Postgres),
    "milvus": ("Milvus Lite", Milvus),
}
_SERVERS = flags.DEFINE_list("servers", list(WAYS), f"Some of {', '.join(WAYS)}.")
_COUNT = flags.DEFINE_integer("count", 100_000, "Vectors.", lower_bound=30_000)


def measure(way: Way, store: Store) -> dict[str, Any]:
    """Seconds to fill and to come back, share found, milliseconds, memory."""
    filled: dict[str, float] = {}
    start = time.perf_counter()
    first = threading.Thread(target=_fill_until_killed, args=(way,))
    first.start()
    while True:
        with contextlib.suppress(psycopg.Error):
            if (had := way.count()) >= store.count() / 2:
                break
        time.sleep(0.2)
    way.kill()
    first.join()
    filled["fill_s"] = time.perf_counter() - start
    start = time.perf_counter()
    way.start()
    filled["lost"] = max(had - way.count(), 0)
    filled["back_s"] = time.perf_counter() - start
    start = time.perf_counter()
    way.fill()
    filled["fill_s"] += time.perf_counter() - start
    print(filled, way.count(), flush=True)
    exact = ExactEngine(store)
    queries = vectors(QUERIES, seed=10**9)
    asked = {}
    for name, filters in ASKED.items():
        times, found = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(way.search(query, filters))
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
    return filled | {"asked": asked, "per_s": _per_second(way, queries)}


def _fill_until_killed(way: Way) -> None:
    # Milvus' client has errors of its own, and logs them.
    with contextlib.suppress(Exception):
        way.fill()


def _per_second(way: Way, queries: np.ndarray) -> float:
    """Queries of all images that some threads get answered."""
    counts, end = [0] * THREADS, time.perf_counter() + SECONDS

    def ask(thread: int) -> None:
        while time.perf_counter() < end:
            way.search(queries[counts[thread] % QUERIES], ALL)
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
        f"| vectors | server | {' | '.join(ASKED)} | queries/s | filled after "
        "| memory | disk | kill -9: lost, back after |",
        "|---" * (len(ASKED) + 7) + "|",
    ]
    for count, rows in results["counts"].items():
        for way, row in rows.items():
            asked = [
                f"{found['p50_ms']:.1f} ms, {found['found']:.1%}"
                for found in row["asked"].values()
            ]
            lines.append(
                f"| {int(count):,} | {WAYS[way][0]} | {' | '.join(asked)} "
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
    for name in _SERVERS.value:
        check_choice("--servers", name, tuple(WAYS))
    path, results = report.read_results("counts", "-servers")
    rows = results["counts"].setdefault(str(_COUNT.value), {})
    with _index(_COUNT.value) as store:
        for name in _SERVERS.value:
            with postgres.folder_of_everybody() as folder:
                way: Way = WAYS[name][1](store, folder)
                try:
                    rows[name] = measure(way, store)
                    rows[name]["memory_mb"] = _memory_mb(way.pid)
                    du = subprocess.check_output(["du", "-sm", folder], text=True)
                    rows[name]["disk_mb"] = int(du.split()[0])
                finally:
                    way.kill()
            report.write_results(path, results)
    print(table(results))


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
