"""Crisscrossed Captions (CxC): retrieval with graded judgements on COCO's 5K test set.

Parekh et al., EACL 2021. Besides image ↔ caption retrieval it has caption → caption and
image → image. The rules (thresholds, what is skipped) are those of the published VSE∞
evaluation.
"""

import math
import operator
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines, read_object
from vse_jax.evaluation.joining import join, plain_id
from vse_jax.evaluation.retrieval import check_finite, positive_ranks, recall

_MIN_SCORE = {"i2i": 2.5, "t2t": 3.0}  # of 5; from there on an item is a positive


def cxc_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    image_ids: Sequence[str],
    folder: AnyPath,
) -> dict[str, dict[str, float]]:
    """Recalls in % of the four tasks.

    A split may hold some of the test set's images only, in any order: judged items that
    it lacks cannot be found and are left out.

    Args:
        images, captions: embeddings of the split, image by image.
        captions_per_image: of every image, or of each.
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
    images, captions, caption_images, image_rows, caption_rows = join(
        images, captions, captions_per_image, image_ids, listed, str(image_file)
    )
    if len(images) < len(listed):
        logging.info("CxC: the split has %d of %d images", len(images), len(listed))

    path = folder / "cxc_it.json"
    between = read_object(path)
    for task in ("i2t", "t2i"):
        if not isinstance(between.get(task), dict):
            raise InputError(f"{path}: no object '{task}'")
    i2t = _positives(path, between["i2t"], image_rows, caption_rows)
    t2i = _positives(path, between["t2i"], caption_rows, image_rows)
    own = sum(map(operator.contains, t2i, caption_images))
    if own < len(t2i) / 2:
        raise InputError(
            f"{path}: {len(t2i) - own} of {len(t2i)} captions do not fit the image of "
            f"their line in {image_file.name} and testall_capids.txt"
        )
    within = {}
    for task, rows, known in (
        ("i2i", image_rows, listed.keys()),
        ("t2t", caption_rows, {caption for ids in listed.values() for caption in ids}),
    ):
        path = folder / f"cxc_{task}.json"
        score = _MIN_SCORE[task]
        found = _positives(path, read_object(path), rows, rows, known, score)
        if not any(found):
            raise InputError(f"{path}: no two items of the split match")
        within[task] = found
    for caption, positives in enumerate(within["t2t"]):
        # The same image's other captions are positives.
        same = np.flatnonzero(caption_images == caption_images[caption]).tolist()
        within["t2t"][caption] = sorted({*same, *positives} - {caption})

    tasks = {
        "i2t": (images, captions, i2t, "image to caption"),
        "t2i": (captions, images, t2i, "caption to image"),
        "i2i": (images, images, within["i2i"], "image to image"),
        "t2t": (captions, captions, within["t2t"], "caption to caption"),
    }
    # A query none of whose positives is in the test set cannot succeed.
    never = np.iinfo(np.int64).max
    metrics = {}
    for task, (queries, items, right, what) in tasks.items():
        ranked = positive_ranks(queries, items, right, f"CxC {what}", task in within)
        best = [ranks[0] if ranks.size else never for ranks, _ in ranked]
        if task == "i2i":  # an image without positives is no query
            best = [rank for rank in best if rank != never]
        metrics[task] = {f"r{k}": recall(np.array(best), k) for k in (1, 5, 10)}
    return metrics


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


def _positives(
    path: AnyPath,
    annotations: dict,
    queries: dict[str, int],
    items: dict[str, int],
    known: Set[str] | None = None,
    min_score: float = -math.inf,
) -> list[list[int]]:
    """Rows of the items judged positive for each query, in the order of the queries.

    Args:
        path: names the file in errors.
        annotations: {query id: [[item id, score], …]}.
        queries, items: {id: row} of the split; items that it lacks are left out.
        known: ids of the test set's items, other ones are an error; None: any.
        min_score: from there on an item is a positive.
    """
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
            judged = [(plain_id(item), float(score)) for item, score in entries[query]]
            finite = all(math.isfinite(score) for _, score in judged)
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise InputError(f"{path}: entry {query!r} is not a list of [id, score]")
        positives = {item for item, score in judged if score >= min_score}
        unknown = positives - known if known is not None else ()
        if unknown:
            raise InputError(
                f"{path}: entry {query!r} names id {min(unknown)!r}, "
                "which is not in the test set"
            )
        result.append(sorted(items[item] for item in positives if item in items))
    return result
