"""Nested dicts of arrays by their paths."""

from typing import Any

import jax

Flat = dict[str, Any]  # arrays, or their shapes


def flatten(tree) -> Flat:
    """Nested dict → {"image/fc/kernel": leaf}, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def merge(tree, flat: Flat):
    """`tree` with the leaves named in `flat` replaced."""
    leaves = {**flatten(tree), **flat}
    return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())
