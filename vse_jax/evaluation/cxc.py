"""Crisscrossed Captions (CxC): retrieval with graded judgements on COCO's 5K test set.

Parekh et al., EACL 2021. Besides image ↔ caption retrieval it has caption → caption and
image → image. The rules (thresholds, what is skipped) are those of the published VSE∞
evaluation.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines, read_object
from vse_jax.evaluation.positives import positions
from vse_jax.evaluation.ranking import check_finite, recall

_LEAST_SCORE = {"i2i": 2.5, "t2t": 3.0}  # of 5; from there on a pair is a match


def cxc_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    folder: AnyPath,
) -> dict[str, dict[str, float]]:
    """Recalls in % of the four tasks.

    Args:
        images, captions: embeddings of the test set, in the order of the id files.
        folder: `cxc_annots/` with testall_ids.txt (an image id a caption, or one an
            image), testall_capids.txt, cxc_it.json, cxc_i2i.json and cxc_t2t.json.

    Returns:
        {"i2t" | "t2i" | "i2i" | "t2t": {"r1", "r5", "r10"}}

    Raises:
        InputError: a file is missing, is no annotation file, or does not fit the
            split; embeddings that are NaN or infinite.
    """
    check_finite("images", images)
    check_finite("captions", captions)
    per = len(captions) // len(images)
    image_file, caption_file = folder / "testall_ids.txt", folder / "testall_capids.txt"
    listed = read_lines(image_file)
    if len(listed) == len(captions):
        listed = listed[::per]
    image_index = _index(listed, image_file, len(images))
    caption_index = _index(read_lines(caption_file), caption_file, len(captions))

    path = folder / "cxc_it.json"
    between = read_object(path)
    for task in ("i2t", "t2i"):
        if not isinstance(between.get(task), dict):
            raise InputError(f"{path}: no object '{task}'")
    # Judged items outside the test set cannot be found and are left out.
    i2t = [
        sorted({caption_index[item] for item, _ in judged if item in caption_index})
        for judged in _judgements(between["i2t"], image_index, path)
    ]
    t2i = [
        sorted({image_index[item] for item, _ in judged if item in image_index})
        for judged in _judgements(between["t2i"], caption_index, path)
    ]
    i2i = _matches(folder / "cxc_i2i.json", image_index, _LEAST_SCORE["i2i"])
    t2t = _matches(folder / "cxc_t2t.json", caption_index, _LEAST_SCORE["t2t"])
    for caption, right in enumerate(t2t):  # the same picture's other captions match
        first = caption // per * per
        siblings = set(range(first, first + per)) - {caption}
        t2t[caption] = sorted(siblings.union(right))

    found = {
        "i2t": positions(images, captions, i2t, "CxC image to caption"),
        "t2i": positions(captions, images, t2i, "CxC caption to image"),
        "i2i": _skip_empty(positions(images, images, i2i, "CxC image to image", True)),
        "t2t": positions(captions, captions, t2t, "CxC caption to caption", True),
    }
    return {task: _recalls(ranked) for task, ranked in found.items()}


def _index(ids: Sequence[str], path: AnyPath, expected: int) -> dict[str, int]:
    """id → row."""
    if len(ids) != expected:
        raise InputError(f"{path}: {len(ids)} ids, but the split has {expected}")
    index = {item: row for row, item in enumerate(ids)}
    if len(index) != len(ids):
        repeated = next(item for row, item in enumerate(ids) if index[item] != row)
        raise InputError(f"{path}: id {repeated!r} is listed twice")
    return index


def _judgements(
    annotations: dict, queries: dict[str, int], path: AnyPath
) -> list[list[tuple[str, float]]]:
    """(item id, score) pairs of every query, in the split's order."""
    result = []
    for query in queries:
        if query not in annotations:
            raise InputError(f"{path}: no entry for id {query!r} of the split")
        try:
            pairs = [(str(item), float(score)) for item, score in annotations[query]]
        except (TypeError, ValueError):
            raise InputError(
                f"{path}: entry {query!r} is not a list of [id, score]"
            ) from None
        result.append(pairs)
    return result


def _matches(
    path: AnyPath, index: dict[str, int], least_score: float
) -> list[list[int]]:
    """Rows of the items judged a match of each query within its own set."""
    result = []
    for query, judged in zip(
        index, _judgements(read_object(path), index, path), strict=True
    ):
        matching = {item for item, score in judged if score >= least_score}
        unknown = matching - index.keys()
        if unknown:
            raise InputError(
                f"{path}: entry {query!r} names id {min(unknown)!r}, "
                "which is not in the split"
            )
        result.append(sorted(index[item] for item in matching))
    if not any(result):
        raise InputError(f"{path}: no two items of the split match")
    return result


def _skip_empty(ranked: list[np.ndarray]) -> list[np.ndarray]:
    """An image that matches no other is no query."""
    return [places for places in ranked if places.size]


def _recalls(ranked: list[np.ndarray]) -> dict[str, float]:
    # A query none of whose right items is in the test set cannot succeed.
    never = np.iinfo(np.int64).max
    best = np.array([places[0] if places.size else never for places in ranked])
    return {f"r{k}": recall(best, k) for k in (1, 5, 10)}
