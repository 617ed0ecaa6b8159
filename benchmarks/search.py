"""Search alone: our engines, faiss, usearch and NumPy on the same vectors.

    python -m benchmarks.search [--counts=100000,1000000] [--ways=exact,numpy]

Makes an index of each size in a temporary folder (1,000,000 vectors: 5 GB) and asks
each way for the ten best of 60 queries, one after the other, in a process of its own.
Prints a table and keeps it in benchmarks/results/MACHINE-search.json; rows that were
not measured stay there as they are.

The vectors are synthetic: 2,000 clusters in 64 dimensions, turned into 1,024 and made
noisy. Only approximate search minds what they are.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import report
from vse_jax.base.errors import check_choice
from vse_jax.command_line import errors_on_one_line
from vse_search.engines import make_engine
from vse_search.store import ALL, File, Filters, NewImage, Store

DIM, TOP, QUERIES, WARM = 1024, 10, 60, 10
_CHUNK = 20_000
Search = Callable[[np.ndarray], list[int]]  # a query → rows of the best


def vectors(count: int, seed: int) -> np.ndarray:
    """float32 [count, DIM], of length 1."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    turn = fixed.standard_normal((64, DIM), np.float32) / 8
    centres = fixed.standard_normal((2000, 64), np.float32)
    inner = centres[rng.integers(len(centres), size=count)]
    inner = inner + 0.7 * rng.standard_normal(inner.shape, np.float32)
    found = inner @ turn + 0.3 * rng.standard_normal((count, DIM), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_index(
    folder: Path,
    count: int,
    dim: int = DIM,
    vectors: Callable[[int, int], np.ndarray] = vectors,
) -> None:
    """An index whose image n + 1 has row n, in a hundred folders, over ten years."""
    Store.create(folder, model="none", name="none", dim=dim, folder=folder)
    with Store.open(folder, read_only=False) as store:
        for start in range(0, count, _CHUNK):
            new = [
                NewImage(
                    File(f"{n % 100:02}/{n:08}.jpg", 5_000_000, 0, f"{n:064}"),
                    *(4000, 3000, f"{2010 + n % 10}-05-01T12:00:00", "Camera"),
                )
                for n in range(start, min(start + _CHUNK, count))
            ]
            store.add(new, vectors(len(new), 1 + start))


# ---- The ways ------------------------------------------------------------------------


def by_engine(name: str, filters: Filters = ALL) -> Callable[[Store], Search]:
    def make(store: Store) -> Search:
        engine = make_engine(store, name)
        return lambda query: [
            hit.id - 1 for hit in engine.search(query, top=TOP, filters=filters)
        ]

    return make


def by_numpy(store: Store) -> Search:
    """As rclip does it: all in memory, one matrix product, everything sorted."""
    matrix = np.array(store.snapshot().matrix)
    return lambda query: np.argsort(matrix @ query)[::-1][:TOP].tolist()


def by_faiss(store: Store) -> Search:
    import faiss  # noqa: PLC0415 (what is measured is the memory of one way)

    index = faiss.IndexFlatIP(DIM)
    for part in _parts(store):
        index.add(part)
    return lambda query: index.search(query[None], TOP)[1][0].tolist()


def by_usearch(store: Store) -> Search:
    from usearch.index import MetricKind, search  # noqa: PLC0415 (as above)

    matrix = np.array(store.snapshot().matrix)

    def find(query: np.ndarray) -> list[int]:
        found = search(matrix, query, TOP, MetricKind.IP, exact=True, threads=0)
        return np.asarray(found.keys).tolist()

    return find


def by_graph(store: Store) -> Search:
    """usearch's HNSW graph over bytes, the best scored again: as `approximate`."""
    from usearch.index import Index  # noqa: PLC0415 (as above)

    matrix = store.snapshot().matrix
    index = Index(ndim=DIM, metric="ip", dtype="i8", expansion_search=64)
    for start, part in enumerate(_parts(store)):
        index.add(start * _CHUNK + np.arange(len(part)), part)

    def find(query: np.ndarray) -> list[int]:
        rows = np.asarray(index.search(query, 100).keys).astype(np.int64)
        return rows[np.argsort(-np.vecdot(matrix[rows], query))[:TOP]].tolist()

    return find


def _parts(store: Store) -> list[np.ndarray]:
    matrix = store.snapshot().matrix
    return [matrix[start : start + _CHUNK] for start in range(0, len(matrix), _CHUNK)]


WAYS: dict[str, tuple[str, Callable[[Store], Search]]] = {
    "exact": ("ours, exact", by_engine("exact")),
    "filtered": (
        "ours, exact, a tenth by date",
        by_engine("exact", Filters(after="2019-01-01")),
    ),
    "numpy": ("NumPy, `@` and `argsort` (rclip's way)", by_numpy),
    "faiss": ("faiss `IndexFlatIP`", by_faiss),
    "usearch": ("usearch, exact", by_usearch),
    "approximate": ("ours, approximate (faiss IVF)", by_engine("approximate")),
    "graph": ("usearch HNSW, int8, rescored", by_graph),
}
_WAYS = flags.DEFINE_list("ways", list(WAYS), f"Some of {', '.join(WAYS)}.")
_COUNTS = flags.DEFINE_list("counts", ["100000", "1000000"], "Vectors.")


# ---- Measuring -----------------------------------------------------------------------


def measure(way: str, index: Path) -> dict[str, float]:
    """Milliseconds of a query, seconds before the first, memory, share found."""
    queries = vectors(QUERIES + WARM, seed=10**9)
    with Store.open(index, read_only=True) as store:
        start = time.perf_counter()
        search = WAYS[way][1](store)
        ready = time.perf_counter() - start
        times, found = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(search(query))
            times.append(1e3 * (time.perf_counter() - start))
        # MB of this process in memory, mapped files included.
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        share = 1.0
        if way != "filtered":  # of the ten best, over some queries
            exact = by_engine("exact")(store)
            both = list(zip(queries, found, strict=True))[:30]
            hits = sum(len(set(exact(query)) & set(rows)) for query, rows in both)
            share = hits / len(both) / TOP
    return {
        "p50_ms": float(np.median(times[WARM:])),
        "p99_ms": float(np.percentile(times[WARM:], 99, method="higher")),
        "ready_s": ready,
        "resident_mb": memory,
        "found": share,
    }


def apart(way: str, index: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    # Set on some machines for older OpenBLAS; they slow a current NumPy.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(measure, way, index).result()


def table(results: dict[str, Any]) -> str:
    """All rows in Markdown."""
    lines = [
        "| vectors | way | p50 | p99 | memory / vectors | ready after | found |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, rows in results["counts"].items():
        size = int(count) * DIM * 4 / 1e6
        lines += [
            f"| {int(count):,} | {WAYS[way][0]} | {row['p50_ms']:.1f} ms "
            f"| {row['p99_ms']:.1f} ms | {row['resident_mb'] / size:.2f} "
            f"| {row['ready_s']:.1f} s | {row['found']:.1%} |"
            for way, row in rows.items()
        ]
    return "\n".join(lines)


def main(_) -> None:
    for way in _WAYS.value:
        check_choice("--ways", way, tuple(WAYS))
    path, results = report.read_results("counts", "-search")
    for count in _COUNTS.value:
        rows = results["counts"].setdefault(count, {})
        with tempfile.TemporaryDirectory() as folder:
            write_index(Path(folder) / "index", int(count))
            for way in _WAYS.value:
                rows[way] = apart(way, Path(folder) / "index")
                print(f"{int(count):,} {WAYS[way][0]}: {rows[way]}", flush=True)
        results["counts"][count] = {way: rows[way] for way in WAYS if way in rows}
        report.write_results(path, results)
    print(table(results))


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
