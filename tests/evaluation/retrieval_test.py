import tracemalloc
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.helpers.golden_weights import FOLDER as GOLDEN_FOLDER
from vse_jax.base.errors import InputError
from vse_jax.evaluation import retrieval
from vse_jax.evaluation.retrieval import (
    ensemble,
    positive_ranks,
    ranks,
    recall,
    retrieval_metrics,
)

GOLDEN = np.load(GOLDEN_FOLDER / "metrics.npz")
KEYS = ("r1", "r5", "r10", "medr", "meanr")


def numbers(direction: dict) -> list[float]:
    return [direction[key] for key in KEYS]


def brute_force(
    similarity: np.ndarray, counts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The definition, query by query, on a similarity matrix [images, captions]."""
    i2t, t2i = [], []
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    for i, row in enumerate(similarity):
        right = [c for c in range(len(row)) if owners[c] == i]
        best = max(row[c] for c in right)
        i2t.append(sum(row[c] >= best for c in range(len(row)) if c not in right))
    for c, column in enumerate(similarity.T):
        right = owners[c]
        t2i.append(
            sum(column[i] >= column[right] for i in range(len(column)) if i != right)
        )
    return i2t, t2i


def test_a_matrix_stated_by_hand():
    # Two captions an image. With captions as unit vectors, images are the matrix rows.
    similarity = np.array(
        [
            # A1   A2   B1   B2   C1   C2
            [0.9, 0.1, 0.5, 0.2, 0.3, 0.0],  # A: its A1 comes first
            [0.8, 0.6, 0.4, 0.7, 0.1, 0.0],  # B: A1 (0.8) before its best, B2 (0.7)
            [0.9, 0.2, 0.6, 0.1, 0.5, 0.5],  # C: A1 and B1 before its 0.5
        ],
        np.float32,
    )
    found, _ = ranks(similarity, np.eye(6, dtype=np.float32), 2)
    assert found.i2t.tolist() == [0, 1, 2]
    # A1: C ties with A. A2: B and C before A. B1: A and C before B. B2: B first.
    # C1 and C2: C first.
    assert found.t2i.tolist() == [1, 2, 2, 0, 0, 0]

    metrics = retrieval_metrics(similarity, np.eye(6, dtype=np.float32), 2)
    assert (metrics["images"], metrics["captions"]) == (3, 6)
    assert numbers(metrics["i2t"]) == pytest.approx([100 / 3, 100, 100, 2, 2])
    assert numbers(metrics["t2i"]) == pytest.approx([50, 100, 100, 1, 11 / 6])
    assert metrics["rsum"] == pytest.approx(100 / 3 + 50 + 400)
    assert "fold5" not in metrics


def test_images_with_any_number_of_captions_by_hand():
    similarity = np.array(
        [
            # A1   B1   B2   B3   C1   C2
            [0.4, 0.5, 0.2, 0.1, 0.3, 0.6],  # A: B1 and C2 before its only one
            [0.1, 0.2, 0.7, 0.7, 0.7, 0.9],  # B: C1 ties with B2 and B3; C2
            [0.4, 0.1, 0.3, 0.2, 0.0, 0.8],  # C: C2 comes first
        ],
        np.float32,
    )
    counts = np.array([1, 3, 2])
    found, _ = ranks(similarity, np.eye(6, dtype=np.float32), counts)
    assert found.i2t.tolist() == [2, 2, 0]
    # A1: C ties. B1: A first. C1: A and B first. C2: B first.
    assert found.t2i.tolist() == [1, 1, 0, 0, 2, 1]
    metrics = retrieval_metrics(similarity, np.eye(6, dtype=np.float32), counts, 1)
    assert metrics["captions"] == 6
    assert "fold5" not in metrics


def test_folds_are_of_images():
    """Five folds of two images each, with 1, 2, 3, … captions."""
    rng = np.random.default_rng(3)
    counts = np.arange(1, 11)
    images = rng.normal(size=(10, 4)).astype(np.float32)
    captions = rng.normal(size=(55, 4)).astype(np.float32)
    found = retrieval_metrics(images, captions, counts, fold=2)["fold5"]
    starts = np.append(0, np.cumsum(counts))
    alone = [
        retrieval_metrics(
            images[i : i + 2], captions[starts[i] : starts[i + 2]], counts[i : i + 2]
        )
        for i in range(0, 10, 2)
    ]
    assert (found["images"], found["captions"]) == (2, 11)
    for way in ("i2t", "t2i"):
        for key in KEYS:
            mean = np.mean([fold[way][key] for fold in alone])
            assert found[way][key] == pytest.approx(mean)


@pytest.mark.parametrize("counts", [3, np.array([1, 2, 3]), np.array([5, 0])])
def test_counts_that_do_not_fit(counts):
    images = np.eye(len(np.atleast_1d(counts)), dtype=np.float32)
    captions = np.ones((5, len(images)), np.float32)
    with pytest.raises(InputError, match="5 captions do not fit"):
        ranks(images, captions, counts)


def test_recall_counts_ranks_below_k():
    assert recall(np.array([0, 1, 4, 5]), 1) == 25
    assert recall(np.array([0, 1, 4, 5]), 5) == 75


@pytest.mark.parametrize("block", [None, 7, 100])
def test_ranks_equal_the_original(block):
    found, _ = ranks(GOLDEN["images"], GOLDEN["captions"], 5, block)
    np.testing.assert_array_equal(found.i2t, GOLDEN["i2t_ranks"])
    np.testing.assert_array_equal(found.t2i, GOLDEN["t2i_ranks"])


def test_metrics_equal_the_original():
    metrics = retrieval_metrics(GOLDEN["images"], GOLDEN["captions"], 5, fold=20)
    assert numbers(metrics["i2t"]) == GOLDEN["i2t"].tolist()
    assert numbers(metrics["t2i"]) == GOLDEN["t2i"].tolist()
    fold5 = metrics["fold5"]
    assert (fold5["images"], fold5["captions"]) == (20, 100)
    np.testing.assert_allclose(
        numbers(fold5["i2t"]) + numbers(fold5["t2i"]), GOLDEN["fold5_mean"], rtol=1e-14
    )


def test_ensemble_equals_the_original():
    captions = GOLDEN["captions"]
    both = ensemble([(GOLDEN["images"], captions), (GOLDEN["images_b"], captions)])
    metrics = retrieval_metrics(*both, 5)
    assert numbers(metrics["i2t"]) == GOLDEN["ensemble_i2t"].tolist()
    assert numbers(metrics["t2i"]) == GOLDEN["ensemble_t2i"].tolist()


def test_ensemble_similarity_is_the_mean_and_sizes_may_differ():
    rng = np.random.default_rng(0)
    members = [(rng.normal(size=(3, dim)), rng.normal(size=(6, dim))) for dim in (4, 7)]
    members = [(i.astype(np.float32), c.astype(np.float32)) for i, c in members]
    images, captions = ensemble(members)
    mean = (members[0][0] @ members[0][1].T + members[1][0] @ members[1][1].T) / 2
    np.testing.assert_allclose(images @ captions.T, mean, rtol=1e-5)


def test_ensemble_of_different_splits_is_refused():
    one = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    two = np.ones((2, 3), np.float32), np.ones((6, 3), np.float32)
    with pytest.raises(
        InputError, match="2 images / 4 captions, 2 images / 6 captions"
    ):
        ensemble([one, two])


# Whole numbers make every inner product exact, so that ties are real ones.
WHOLE = st.integers(-2, 2).map(float)


@settings(deadline=None)  # each shape is compiled: there are few
@given(data=st.data())
def test_ranks_equal_the_definition(data):
    n = data.draw(st.sampled_from([1, 2, 7]), label="images")
    equal = [[k] * n for k in (1, 2, 3)]
    uneven = [[1, 3, 2, 1, 1, 5, 1][:n], [4, 1, 1, 2, 3, 1, 2][:n]]
    counts = data.draw(st.sampled_from(equal + uneven), label="captions per image")
    block = data.draw(st.sampled_from([1, 3, 8]), label="block")
    images = data.draw(arrays(np.float32, (n, 3), elements=WHOLE))
    captions = data.draw(arrays(np.float32, (sum(counts), 3), elements=WHOLE))
    found, _ = ranks(images, captions, np.array(counts), block)
    i2t, t2i = brute_force(images @ captions.T, counts)
    assert found.i2t.tolist() == i2t
    assert found.t2i.tolist() == t2i


@pytest.mark.parametrize("block", [None, 1, 10])
def test_a_collapsed_model_earns_nothing(block):
    # The same vector everywhere: BLAS does not round all its products alike.
    row = np.random.default_rng(0).normal(size=100).astype(np.float32)
    found, _ = ranks(np.tile(row, (37, 1)), np.tile(row, (185, 1)), 5, block)
    assert set(found.i2t) == {180}
    assert set(found.t2i) == {36}


@pytest.mark.parametrize("block", [None, 1, 4])
def test_the_same_sentence_for_two_images_is_a_tie(block):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(24, 100)).astype(np.float32)
    captions = images.copy()
    captions[20] = captions[3]  # image 20 has lost its own caption
    found, _ = ranks(images, captions, 1, block)
    alone, _ = ranks(images, images, 1, block)
    assert found.i2t[3] == alone.i2t[3] + 1


def test_folds_are_searched_on_their_own():
    rng = np.random.default_rng(2)
    images = rng.normal(size=(50, 8)).astype(np.float32)
    captions = rng.normal(size=(100, 8)).astype(np.float32)
    folds = [
        retrieval_metrics(
            images[10 * k : 10 * k + 10], captions[20 * k : 20 * k + 20], 2
        )
        for k in range(5)
    ]
    fold5 = retrieval_metrics(images, captions, 2, fold=10)["fold5"]
    assert fold5["rsum"] == pytest.approx(np.mean([fold["rsum"] for fold in folds]))
    assert fold5["i2t"]["meanr"] == pytest.approx(
        np.mean([fold["i2t"]["meanr"] for fold in folds])
    )


def test_rows_that_are_not_finite_are_named():
    images = np.ones((10, 4), np.float32)
    captions = np.ones((10, 4), np.float32)
    captions[[2, 9], [0, 3]] = np.nan, np.inf
    with pytest.raises(InputError, match=r"captions: 2 of 10 .*\(rows from 0: 2, 9\)"):
        retrieval_metrics(images, captions, 1)
    images[:] = np.nan
    with pytest.raises(InputError, match=r"images: 10 of 10 .* 0, 1, 2, 3, 4 …"):
        retrieval_metrics(images, captions, 1)


def test_counts_that_do_not_fit_are_refused():
    images = np.ones((3, 4), np.float32)
    with pytest.raises(InputError, match=r"3 images and 10 captions .* 5 captions"):
        ranks(images, np.ones((10, 4), np.float32), 5)


def test_memory_does_not_hold_the_whole_matrix():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(6000, 4)).astype(np.float32)
    captions = rng.normal(size=(12000, 4)).astype(np.float32)
    tracemalloc.start()
    retrieval_metrics(images, captions, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6000 * 12000  # bytes; the matrix alone has four times as many


def test_data_moves_to_devices_only_when_asked():
    images = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with jax.transfer_guard("disallow"):  # as --config.debug trains
        ranks(images, images, 1, block=2)


def sorted_ranks(similarity: np.ndarray, right: list[int]) -> list[int]:
    """Sorts the items of one query, negatives before positives among equals."""
    order = sorted(
        range(len(similarity)), key=lambda item: (-similarity[item], item in right)
    )
    return [place for place, item in enumerate(order) if item in right]


def test_ranks_of_listed_positives_stated_by_hand():
    queries = np.ones((1, 1), np.float32)
    items = np.array([[0.9], [0.5], [0.7], [0.5], [0.1]], np.float32)
    ((found, _),) = positive_ranks(queries, items, [[1, 2]], "test")
    assert found.tolist() == [1, 3]  # 0.9, *0.7*, 0.5, *0.5*, 0.1


@settings(deadline=None)  # each shape is compiled: there are few
@given(data=st.data())
def test_ranks_of_listed_positives_equal_the_definition(data):
    n = data.draw(st.sampled_from([1, 3]), label="queries")
    m = data.draw(st.sampled_from([1, 4, 9]), label="items")
    whole = st.integers(-2, 2).map(float)
    queries = data.draw(arrays(np.float32, (n, 2), elements=whole))
    items = data.draw(arrays(np.float32, (m, 2), elements=whole))
    one = st.lists(st.integers(0, m - 1), unique=True)
    right = data.draw(st.lists(one, min_size=n, max_size=n))
    found = [x for x, _ in positive_ranks(queries, items, right, "test")]
    similarity = queries @ items.T
    for row, places in enumerate(found):
        assert places.tolist() == sorted_ranks(similarity[row], right[row])


def test_a_query_counts_as_unlike_itself_within_its_own_set():
    items = np.array([[1.0, 0.0], [0.9, -0.1], [-1.0, 0.0]], np.float32)
    pairs = positive_ranks(items, items, [[1], [0], [0]], "test", same_set=True)
    found = [x for x, _ in pairs]
    # The last one's only positive is less like it (−1) than "itself" (0) and item 1.
    assert [places.tolist() for places in found] == [[0], [0], [2]]


@pytest.mark.parametrize("tile", [1, 100, 5_000_000])
def test_duplicates_tie_whatever_the_tiles(monkeypatch, tile):
    monkeypatch.setattr(retrieval, "_TILE", tile)
    row = np.random.default_rng(0).normal(size=100).astype(np.float32)
    queries, items = np.tile(row, (37, 1)), np.tile(row, (185, 1))
    pairs = positive_ranks(queries, items, [[k] for k in range(37)], "test")
    found = [x for x, _ in pairs]
    assert {places[0] for places in found} == {184}
