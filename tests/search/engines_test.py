"""Exact search, against a plain matrix product."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.indices import COUNT, DIM, new, unit_vectors, write_index
from vse_search.engines import ExactEngine, best
from vse_search.store import ALL, File, Filters, Store


@pytest.fixture
def vectors() -> np.ndarray:
    return unit_vectors()


@pytest.fixture
def index(tmp_path) -> Path:
    return write_index(tmp_path)


@pytest.mark.parametrize(
    ("filters", "step", "first"),
    [(ALL, 1, 0), (Filters(camera="B"), 2, 1), (Filters(folder="ten"), 10, 0)],
)
def test_finds_what_a_matrix_product_finds(index, vectors, filters, step, first):
    query = vectors[3] + vectors[4]
    scores = vectors[first::step] @ query
    order = np.argsort(-scores)[:7]
    with Store.open(index, read_only=True) as store:
        hits = ExactEngine(store).search(query, top=7, filters=filters)
        assert [hit.id for hit in hits] == (first + step * order + 1).tolist()
        assert [hit.path for hit in hits] == [store.image(hit.id).path for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], rtol=1e-5)


def test_removed_pictures_are_not_found(index, vectors):
    with Store.open(index, read_only=False) as store:
        engine = ExactEngine(store)
        assert engine.search(vectors[5], top=1)[0].id == 6
        store.forget(["005.jpg"])
        assert engine.search(vectors[5], top=1) == []  # it still has the old vectors
        engine.refresh()
        hits = engine.search(vectors[5], top=COUNT)
        assert len(hits) == COUNT - 1
        assert 6 not in [hit.id for hit in hits]


def test_new_pictures_are_found_after_a_refresh(index, vectors):
    with (
        Store.open(index, read_only=True) as store,
        Store.open(index, read_only=False) as writer,
    ):
        engine = ExactEngine(store)
        engine.search(vectors[0], top=1, filters=Filters(folder="ten"))
        writer.add([new("ten/new.jpg")], 2 * vectors[:1])
        engine.refresh()
        hits = engine.search(vectors[0], top=1, filters=Filters(folder="ten"))
        assert hits[0].path == "ten/new.jpg"


def test_lowest_score(index, vectors):
    with Store.open(index, read_only=True) as store:
        hits = ExactEngine(store).search(vectors[0], top=COUNT, min_score=0.3)
    assert len(hits) == np.sum(vectors @ vectors[0] >= 0.3)


def test_a_copy_in_the_folder_is_named(index, vectors):
    with Store.open(index, read_only=False) as store:
        store.link([File("ten/z.jpg", 10, 5, "001.jpg")])
        engine = ExactEngine(store)
        assert engine.search(vectors[1], top=1)[0].path == "001.jpg"
        hits = engine.search(vectors[1], top=1, filters=Filters(folder="ten"))
        assert hits[0].path == "ten/z.jpg"


def test_an_empty_index_finds_nothing(tmp_path):
    Store.create(tmp_path / "i", model="m", name="n", dim=2, folder=tmp_path)
    with Store.open(tmp_path / "i", read_only=True) as store:
        assert ExactEngine(store).search(np.ones(2, np.float32), top=5) == []


def test_equal_scores_keep_their_order():
    scores = np.array([1, 3, 2, 3, 2, 2], np.float32)
    assert best(scores, 3).tolist() == [1, 3, 2]
    assert best(scores, 9).tolist() == [1, 3, 2, 4, 5, 0]


def test_another_index_in_its_place_is_never_mixed_with_the_old_one(index, vectors):
    with Store.open(index, read_only=True) as store:
        engine = ExactEngine(store)
        names = [hit.path for hit in engine.search(vectors[3], top=3)]
        shutil.rmtree(index)
        Store.create(index, model="m", name="n", dim=DIM, folder=index)
        with Store.open(index, read_only=False) as writer:
            writer.add([new(f"new{n}.jpg") for n in range(5)], vectors[3:8])

        # Before it has taken in the new one, an engine answers from the old one.
        assert [hit.path for hit in engine.search(vectors[3], top=3)] == names
        ten = engine.search(vectors[3], top=3, filters=Filters(folder="ten"))
        assert all(hit.path.startswith("ten/") for hit in ten)
        engine.refresh()
        (hit,) = engine.search(vectors[3], top=1)
        assert (hit.id, hit.path) == (1, "new0.jpg")
        assert hit.score == pytest.approx(1)
