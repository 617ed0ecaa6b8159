import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_object
from vse_jax.evaluation import positives
from vse_jax.evaluation.positives import positions


def brute_force(similarity: np.ndarray, right: list[int]) -> list[int]:
    """Sorts the items of one query, wrong before right among equals."""
    order = sorted(
        range(len(similarity)), key=lambda item: (-similarity[item], item in right)
    )
    return [place for place, item in enumerate(order) if item in right]


def test_a_row_stated_by_hand():
    queries = np.ones((1, 1), np.float32)
    items = np.array([[0.9], [0.5], [0.7], [0.5], [0.1]], np.float32)
    (found,) = positions(queries, items, [[1, 2]], "test")
    assert found.tolist() == [1, 3]  # 0.9, *0.7*, 0.5, *0.5*, 0.1


@given(data=st.data())
def test_positions_equal_the_definition(data):
    n = data.draw(st.integers(1, 4), label="queries")
    m = data.draw(st.integers(1, 9), label="items")
    whole = st.integers(-2, 2).map(float)
    queries = data.draw(arrays(np.float32, (n, 2), elements=whole))
    items = data.draw(arrays(np.float32, (m, 2), elements=whole))
    one = st.lists(st.integers(0, m - 1), unique=True)
    right = data.draw(st.lists(one, min_size=n, max_size=n))
    found = positions(queries, items, right, "test")
    similarity = queries @ items.T
    for row, places in enumerate(found):
        assert places.tolist() == brute_force(similarity[row], right[row])


def test_a_query_counts_as_unlike_itself_within_its_own_set():
    items = np.array([[1.0, 0.0], [0.9, -0.1], [-1.0, 0.0]], np.float32)
    found = positions(items, items, [[1], [0], [0]], "test", within=True)
    # The last one's only match is less like it (−1) than "itself" (0) and item 1.
    assert [places.tolist() for places in found] == [[0], [0], [2]]


@pytest.mark.parametrize("tile", [1, 100, 5_000_000])
def test_equal_items_tie_whatever_the_tiles(monkeypatch, tile):
    monkeypatch.setattr(positives, "_TILE", tile)
    row = np.random.default_rng(0).normal(size=100).astype(np.float32)
    queries, items = np.tile(row, (37, 1)), np.tile(row, (185, 1))
    found = positions(queries, items, [[k] for k in range(37)], "test")
    assert {places[0] for places in found} == {184}


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"annotations\.json: not "):
        read_object(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        read_object(tmp_path / "none.json")
