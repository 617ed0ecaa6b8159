"""Nearly equal pictures."""

import numpy as np

from vse_search.searcher import stacks


def fan(*degrees: float) -> np.ndarray:
    """Vectors in a plane, of different lengths."""
    angles = np.radians(degrees)
    lengths = np.arange(1, len(degrees) + 1)
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]).astype(
        "f"
    )


def found(vectors, ratios=None, neighbors=False):
    ratios = np.ones(len(vectors)) if ratios is None else np.array(ratios)
    return stacks(vectors, ratios, neighbors=neighbors)


def test_the_cosine_decides_whatever_the_lengths():
    assert found(fan(0, 8, 90, 92)) == [[0, 1], [2, 3]]  # cos 8° is 0.990
    assert found(fan(0, 9, 90)) == []  # cos 9° is 0.988
    assert found(-fan(0, 180)) == []


def test_a_stack_does_not_drift():
    assert found(fan(0, 7, 14, 21)) == [[0, 1], [2, 3]]


def test_what_lies_in_between_ends_a_stack_of_neighbors():
    assert found(fan(0, 90, 1)) == [[0, 2]]
    assert found(fan(0, 90, 1), neighbors=True) == []
    assert found(fan(0, 1, 90, 91, 2), neighbors=True) == [[0, 1], [2, 3]]


def test_an_upright_picture_is_not_one_that_lies():
    assert found(fan(0, 0, 0), [1.5, 1 / 1.5, 1.505]) == [[0, 2]]


def test_few_and_none():
    assert found(np.zeros((0, 4), np.float32)) == []
    assert found(np.zeros((2, 4), np.float32)) == []  # of pictures that are gone
    assert found(fan(0)) == []
