"""Approximate search against exact search, and its cache."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.indices import COUNT, new, unit_vectors, write_index
from vse_search import approximate
from vse_search.approximate import ApproximateEngine
from vse_search.engines import ExactEngine
from vse_search.store import Filters, Store


@pytest.fixture
def vectors() -> np.ndarray:
    return unit_vectors()


@pytest.fixture
def index(tmp_path) -> Path:
    return write_index(tmp_path)


@pytest.fixture(autouse=True)
def grouped(monkeypatch):
    """A few pictures are grouped, too, and are not all looked at."""
    monkeypatch.setattr(approximate, "_LEAST", 10)
    monkeypatch.setattr(approximate, "_RESCORED", 20)


def cache(folder: Path) -> Path:
    [path] = folder.glob("*.faiss")
    return path


def test_agrees_with_exact_search(index, vectors):
    queries = vectors[:40] + vectors[1:41] / 2
    with Store.open(index, read_only=True) as store:
        engine, exact = ApproximateEngine(store), ExactEngine(store)
        for query in queries:
            assert engine.search(query, top=2) == exact.search(query, top=2)
        low = engine.search(queries[0], top=2, min_score=1.05)
        assert low == exact.search(queries[0], top=2, min_score=1.05)
        ten = Filters(folder="ten")
        assert len(engine.search(queries[0], top=2, filters=ten)) == 2


def test_the_cache_is_used_and_made_anew_when_damaged(index, vectors, monkeypatch):
    with Store.open(index, read_only=True) as store:
        ApproximateEngine(store)
        before = cache(index).read_bytes()
        cache(index).write_bytes(before[:100])
        engine = ApproximateEngine(store)
        assert cache(index).read_bytes() == before
        monkeypatch.setattr(approximate, "_grouped", None)
        again = ApproximateEngine(store)
        query = vectors[7]
        assert again.search(query, top=1) == engine.search(query, top=1)


def test_it_follows_the_index(index, vectors, monkeypatch):
    with Store.open(index, read_only=False) as store:
        engine = ApproximateEngine(store)
        old = cache(index)
        store.add([new("new.jpg")], 2 * vectors[:1])
        store.forget(["001.jpg"])
        with monkeypatch.context() as patch:
            patch.setattr(approximate, "_grouped", None)
            engine.refresh()
            engine.refresh()
        assert engine.search(vectors[0], top=1)[0].path == "new.jpg"
        assert 2 not in [hit.id for hit in engine.search(vectors[1], top=2)]

        store.forget([f"{n:03}.jpg" for n in range(COUNT // 2)])
        engine.refresh()
        assert cache(index) != old
        assert engine.search(vectors[0], top=1)[0].path == "new.jpg"


def test_few_pictures_need_no_cache(index, vectors, monkeypatch):
    monkeypatch.setattr(approximate, "_LEAST", COUNT + 1)
    with Store.open(index, read_only=True) as store:
        assert ApproximateEngine(store).search(vectors[3], top=1)[0].id == 4
    assert not list(index.glob("*.faiss"))
