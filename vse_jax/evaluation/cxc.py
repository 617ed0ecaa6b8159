"""Crisscrossed Captions (CxC): retrieval with graded judgements on COCO's 5K test set.

Parekh et al., EACL 2021. Besides image ↔ caption retrieval it has caption → caption and
image → image. The rules (thresholds, what is skipped) are those of the published VSE∞
evaluation.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence, Set

import numpy as np
from absl import logging
from jaxtyping import Float

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines, read_object
from vse_jax.evaluation.joining import join, plain_id
from vse_jax.evaluation.retrieval import check_finite, positive_ranks, recall

_LEAST_SCORE = {"i2i": 2.5, "t2t": 3.0}  # of 5; from there on a pair is a match


def cxc_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    image_ids: Sequence[str],
    folder: AnyPath,
) -> dict[str, dict[str, float]]:
    """Recalls in % of the four tasks.

    A split may hold some of the test set's images only, in any order: judged items that
    it lacks cannot be found and are left out.

    Args:
        images, captions: embeddings of the split, image by image.
        image_ids: of the split; they are looked up in the id files.
        folder: `cxc_annots/` with testall_ids.txt (an image id a caption, or one an
            image), testall_capids.txt, cxc_it.json, cxc_i2i.json and cxc_t2t.json.

    Returns:
        {"i2t" | "t2i" | "i2i" | "t2t": {"r1", "r5", "r10"}}

    Raises:
        InputError: a file is missing, is no annotation file, or lacks ids of the split;
            embeddings that are NaN or infinite.
    """
    check_finite("images", images)
    check_finite("captions", captions)
    image_file = folder / "testall_ids.txt"
    listed = _listed_captions(image_file, folder / "testall_capids.txt")
    images, captions, image_rows, caption_rows = join(
        images, captions, image_ids, listed, str(image_file)
    )
    if len(images) < len(listed):
        logging.info("CxC: the split has %d of %d images", len(images), len(listed))

    path = folder / "cxc_it.json"
    between = read_object(path)
    for task in ("i2t", "t2i"):
        if not isinstance(between.get(task), dict):
            raise InputError(f"{path}: no object '{task}'")
    i2t = [
        sorted({caption_rows[item] for item, _ in judged if item in caption_rows})
        for judged in _judgements(between["i2t"], image_rows, path)
    ]
    t2i = [
        sorted({image_rows[item] for item, _ in judged if item in image_rows})
        for judged in _judgements(between["t2i"], caption_rows, path)
    ]
    per = len(captions) // len(images)
    own = sum(row // per in right for row, right in enumerate(t2i))
    if own < len(t2i) / 2:
        raise InputError(
            f"{path}: {len(t2i) - own} of {len(t2i)} captions do not fit the image of "
            f"their line in {image_file.name} and testall_capids.txt"
        )
    every_caption = {caption for ids in listed.values() for caption in ids}
    i2i_file, t2t_file = folder / "cxc_i2i.json", folder / "cxc_t2t.json"
    i2i = _matches(i2i_file, image_rows, listed.keys(), _LEAST_SCORE["i2i"])
    t2t = _matches(t2t_file, caption_rows, every_caption, _LEAST_SCORE["t2t"])
    for caption, right in enumerate(t2t):  # the same picture's other captions match
        first = caption // per * per
        siblings = set(range(first, first + per)) - {caption}
        t2t[caption] = sorted(siblings.union(right))

    found = {
        "i2t": positive_ranks(images, captions, i2t, "CxC image to caption"),
        "t2i": positive_ranks(captions, images, t2i, "CxC caption to image"),
        "i2i": _skip_empty(
            positive_ranks(images, images, i2i, "CxC image to image", True)
        ),
        "t2t": positive_ranks(captions, captions, t2t, "CxC caption to caption", True),
    }
    return {task: _recalls(ranked) for task, ranked in found.items()}


def _listed_captions(
    image_file: AnyPath, caption_file: AnyPath
) -> dict[str, list[str]]:
    """{image id: its caption ids} of the two lists, which go line by line.

    An image is listed once for each of its captions, or once.
    """
    image_ids = [plain_id(line) for line in read_lines(image_file)]
    caption_ids = [plain_id(line) for line in read_lines(caption_file)]
    each, rest = divmod(len(caption_ids), max(len(image_ids), 1))
    if rest or not each:
        raise InputError(
            f"{image_file}: {len(image_ids)} ids do not fit the {len(caption_ids)} of "
            f"{caption_file.name}"
        )
    once = {caption_file: caption_ids} | ({image_file: image_ids} if each > 1 else {})
    for path, ids in once.items():
        repeated, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise InputError(f"{path}: id {repeated!r} is listed twice")
    listed: dict[str, list[str]] = {}
    for row, caption in enumerate(caption_ids):
        listed.setdefault(image_ids[row // each], []).append(caption)
    return listed


def _judgements(
    annotations: dict, queries: Collection[str], path: AnyPath
) -> list[list[tuple[str, float]]]:
    """(item id, score) pairs of every query, in the order of the queries."""
    entries = {plain_id(query): entry for query, entry in annotations.items()}
    missing = [query for query in queries if query not in entries]
    if missing:
        raise InputError(
            f"{path}: no entry for id {missing[0]!r}; {len(missing):,} of the split's "
            f"{len(queries):,} ids have none"
        )
    result = []
    for query in queries:
        try:
            pairs = [(plain_id(item), float(score)) for item, score in entries[query]]
            finite = all(math.isfinite(score) for _, score in pairs)
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise InputError(f"{path}: entry {query!r} is not a list of [id, score]")
        result.append(pairs)
    return result


def _matches(
    path: AnyPath, rows: dict[str, int], known: Set[str], least_score: float
) -> list[list[int]]:
    """Rows of the items judged a match of each query within its own set.

    Items of the test set that the split lacks are left out.
    """
    result = []
    judgements = _judgements(read_object(path), rows, path)
    for query, judged in zip(rows, judgements, strict=True):
        matching = {item for item, score in judged if score >= least_score}
        unknown = matching - known
        if unknown:
            raise InputError(
                f"{path}: entry {query!r} names id {min(unknown)!r}, "
                "which is not in the test set"
            )
        result.append(sorted(rows[item] for item in matching if item in rows))
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
