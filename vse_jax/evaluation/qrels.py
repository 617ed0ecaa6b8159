"""Judgements of your own in TREC's format: nDCG, MAP and MRR, graded, any positives.

A line of the file is `QUERY 0 ITEM GRADE`. Images have the ids of the split's list; the
captions of an image are IMAGE#0, IMAGE#1, … in its order, as in Flickr30K's own files.
A line with an image first judges image → caption, one with a caption first the other
direction. A grade above 0 is a positive; other lines count like unjudged items.
"""

import math
import operator
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines
from vse_jax.data.dataset import caption_offsets
from vse_jax.evaluation.joining import image_rows, plain_id
from vse_jax.evaluation.retrieval import check_finite, positive_ranks

_CUT = 10  # ranks that nDCG looks at

Grades = dict[int, dict[int, float]]  # query row → item row → grade above 0


def qrels_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    image_ids: Sequence[str],
    file: AnyPath,
) -> dict[str, dict[str, int | float]]:
    """nDCG@10, MAP and MRR in %, means over the queries that have a positive.

    nDCG's gain is the grade, its discount log2(rank + 1), as in trec_eval's
    ndcg_cut_10; MAP looks at all ranks. Equal similarities count against the model,
    also between positives: the one of the lower grade comes first. Lines about images
    or captions that the split lacks are left out, which the log says.

    Args:
        images, captions: embeddings of the split, image by image.
        captions_per_image: of every image, or of each.
        image_ids: of the split.
        file: the judgements.

    Returns:
        {"i2t" | "t2i": {"queries", "ndcg10", "map", "mrr"}}, the directions with
        positives.

    Raises:
        InputError: the file is missing, a line is none of TREC's, joins two images or
            two captions, or judges a pair again; no positive is in the split;
            embeddings are NaN or infinite.
    """
    check_finite("images", images)
    check_finite("captions", captions)
    counts = np.broadcast_to(captions_per_image, len(images))
    judged = _read(file, image_rows(image_ids, str(file)), counts)
    sides = {"i2t": (images, captions), "t2i": (captions, images)}
    return {
        direction: _means(*sides[direction], grades, direction)
        for direction, grades in judged.items()
        if grades
    }


def _read(
    file: AnyPath, rows: dict[str, int], counts: Int[np.ndarray, " images"]
) -> dict[str, Grades]:
    offsets = caption_offsets(counts)

    def place(given: str) -> tuple[str, int | None]:
        """Whether an id is an image's or a caption's, and its row; None: not here."""
        if plain_id(given) in rows:
            return "image", rows[plain_id(given)]
        image, sign, number = given.rpartition("#")
        if not (sign and number.isascii() and number.isdigit()):
            return "image", None
        row = rows.get(plain_id(image))
        if row is None or int(number) >= counts[row]:
            return "caption", None
        return "caption", int(offsets[row]) + int(number)

    found: dict[str, Grades] = {"i2t": {}, "t2i": {}}
    seen: set[tuple[str, str]] = set()
    absent = 0
    for number, line in enumerate(read_lines(file), 1):
        if not line:
            continue
        where = f"{file}, line {number}"
        try:
            query, _, item, said = line.split()
            grade = float(said)
        except ValueError:
            grade = math.nan
        if not math.isfinite(grade):
            raise InputError(f"{where}: not 'QUERY 0 ITEM GRADE'")
        if (query, item) in seen:
            raise InputError(f"{where}: {query} and {item} are judged again")
        seen.add((query, item))
        (kind, row), (other, item_row) = place(query), place(item)
        if row is None or item_row is None:
            absent += 1
        elif kind == other:
            raise InputError(f"{where}: {query} and {item} are two {kind}s")
        elif grade > 0:
            direction = "i2t" if kind == "image" else "t2i"
            found[direction].setdefault(row, {})[item_row] = grade
    if not any(found.values()):
        raise InputError(
            f"{file}: no positive is in the split; captions are IMAGE#0, IMAGE#1, …"
        )
    if absent:
        logging.info(
            "%s: %d of %d lines name what the split lacks", file, absent, len(seen)
        )
    return found


def _means(
    queries: np.ndarray, items: np.ndarray, judged: Grades, direction: str
) -> dict[str, int | float]:
    # Of equally similar ones the first in the list comes first.
    ascending = [
        sorted(grades.items(), key=operator.itemgetter(1)) for grades in judged.values()
    ]
    positives = [[item for item, _ in pairs] for pairs in ascending]
    ranked = positive_ranks(
        queries[list(judged)], items, positives, f"qrels: {direction}"
    )
    ndcg, precision, reciprocal = [], [], []
    for pairs, (ranks, order) in zip(ascending, ranked, strict=True):
        grades = np.array([grade for _, grade in pairs])
        gains, first = grades[order], ranks < _CUT
        best = np.sort(grades)[::-1][:_CUT]
        ideal = (best / np.log2(np.arange(len(best)) + 2)).sum()
        ndcg.append((gains[first] / np.log2(ranks[first] + 2)).sum() / ideal)
        precision.append(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))
        reciprocal.append(1 / (ranks[0] + 1))
    return {
        "queries": len(ndcg),
        "ndcg10": 100 * float(np.mean(ndcg)),
        "map": 100 * float(np.mean(precision)),
        "mrr": 100 * float(np.mean(reciprocal)),
    }
