"""Nested dicts of arrays by their paths."""

import numpy as np

from vse_jax.base.trees import flatten, merge

TREE = {"text": {"b": 1, "a": 2}, "image": {"fc": {"kernel": np.ones(3)}}}


def test_leaves_are_named_by_their_paths_in_the_order_of_the_tree():
    assert list(flatten(TREE)) == ["image/fc/kernel", "text/a", "text/b"]
    assert flatten(TREE)["image/fc/kernel"] is TREE["image"]["fc"]["kernel"]


def test_merging_replaces_the_named_leaves_alone():
    merged = merge(TREE, {"text/a": 3})
    assert merged["text"] == {"a": 3, "b": 1}
    assert merged["image"]["fc"]["kernel"] is TREE["image"]["fc"]["kernel"]
    assert TREE["text"]["a"] == 2
