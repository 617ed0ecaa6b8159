"""Search by Qdrant, in qdrant-client's local mode, against exact search."""

import contextlib

import numpy as np
import pytest
from qdrant_client import QdrantClient

from tests.helpers.indices import COUNT, DIM, new, unit_vectors, write_index
from vse_jax.base.errors import InputError
from vse_search import qdrant
from vse_search.engines import ExactEngine, make_engine
from vse_search.qdrant import QdrantEngine
from vse_search.store import ALL, File, Filters, Store


@pytest.fixture
def vectors() -> np.ndarray:
    return unit_vectors()


@pytest.fixture
def store(tmp_path):
    with Store.open(write_index(tmp_path), read_only=False) as store:
        dated = [
            new("x/y/a.jpg", "A", "2019-05-01T23:59:59", "Canon"),
            new("x/b.jpg", "B", "2019-05-02T00:00:00"),
        ]
        store.add(dated, np.eye(2, DIM, dtype=np.float32))
        yield store


@pytest.fixture
def engine(store):
    with contextlib.closing(make_engine(store, "qdrant", ":memory:")) as engine:
        yield engine


@pytest.mark.parametrize(
    "filters",
    [
        ALL,
        Filters(camera="a"),
        Filters(camera="Canon"),
        Filters(folder="ten"),
        Filters(folder="x"),
        Filters(folder="x/y"),
        Filters(after="2019-05-02"),
        Filters(before="2019-05-01"),
        Filters(after="2019-05-01", before="2019-05-02"),
        Filters(camera="B", folder="ten", after="2030-01-01"),
    ],
)
def test_agrees_with_exact_search(engine, store, vectors, filters):
    found = engine.search(vectors[3], top=7, filters=filters)
    expected = ExactEngine(store).search(vectors[3], top=7, filters=filters)
    assert [(hit.id, hit.path) for hit in found] == [
        (hit.id, hit.path) for hit in expected
    ]
    scores = [hit.score for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-5)


def test_lowest_score(engine, vectors):
    hits = engine.search(vectors[0], top=COUNT, min_score=0.3)
    assert 1 < len(hits) < COUNT
    assert min(hit.score for hit in hits) >= 0.3


def test_it_follows_the_index(engine, store, vectors):
    sent = []
    upsert = engine._client.upsert
    engine._client.upsert = lambda c, points: (sent.extend(points), upsert(c, points))
    store.add([new("new.jpg")], 2 * vectors[:1])
    store.forget(["x/y/a.jpg"])
    store.link([File("ten/b.jpg", 10, 5, "B")])

    engine.refresh()

    assert sorted(point.id for point in sent) == [COUNT + 2, COUNT + 3]
    assert engine.search(vectors[0], top=1)[0].path == "new.jpg"
    hits = engine.search(np.eye(1, DIM, dtype=np.float32)[0], top=COUNT + 9)
    assert COUNT + 1 not in [hit.id for hit in hits]
    second = np.eye(1, DIM, 1, dtype=np.float32)[0]
    ten = Filters(folder="ten")
    assert engine.search(second, top=1, filters=ten)[0].path == "ten/b.jpg"
    sent.clear()
    engine.refresh()
    assert not sent


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local")
def test_what_the_server_has_is_not_sent_again(store, monkeypatch):
    with contextlib.closing(QdrantClient(":memory:")) as client:
        monkeypatch.setattr(qdrant, "_client", lambda _: client)
        QdrantEngine(store, "http://a")
        monkeypatch.setattr(QdrantEngine, "_bring_in_line", None)
        QdrantEngine(store, "http://a")  # noted: nothing is compared
        with pytest.raises(TypeError):
            QdrantEngine(store, "http://b")


def test_unknown_names_are_named(engine, vectors):
    with pytest.raises(InputError, match="camera: no image has 'Leica'"):
        engine.search(vectors[0], top=1, filters=Filters(camera="Leica"))


@pytest.mark.parametrize("url", [None, "", "/tmp/folder", "ftp://host"])
def test_other_urls_are_refused(store, url):
    with pytest.raises(InputError, match=r"config.search.url: .* is no http"):
        make_engine(store, "qdrant", url)


def test_a_server_that_does_not_answer_is_named(store):
    url = "http://127.0.0.1:9"  # nobody listens there
    with pytest.raises(InputError) as error:
        make_engine(store, "qdrant", url)
    assert str(error.value).startswith(f"config.search.url: {url}: Qdrant: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package"), [("qdrant", "qdrant_client"), ("approximate", "faiss")]
)
def test_a_missing_package_is_named(store, monkeypatch, name, package):
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"vse_search.{name}", raising=False)
    with pytest.raises(InputError) as error:
        make_engine(store, name, ":memory:")
    message = str(error.value)
    assert message.startswith(f"config.search.engine: '{name}' needs {package}: ")
