"""TREC qrels, against a plain implementation that sorts every list of items."""

import math

import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.evaluation.qrels import qrels_metrics
from vse_jax.evaluation.retrieval import retrieval_metrics

COUNTS = np.array([1, 3, 2, 5, 1, 4, 2, 2, 3, 7, 1, 1])
IDS = [f"{7 * row:>04}" for row in range(11)] + ["a.jpg"]
CAPTION_IDS = [f"{IDS[i]}#{k}" for i in range(len(IDS)) for k in range(COUNTS[i])]


@pytest.fixture
def embeddings():
    """Small whole numbers: many similarities are equal, and exact."""
    rng = np.random.default_rng(0)
    images = rng.integers(-2, 3, (len(IDS), 3)).astype(np.float32)
    captions = rng.integers(-2, 3, (len(CAPTION_IDS), 3)).astype(np.float32)
    captions[5] = captions[9]
    return images, captions


def write(path, judged):
    lines = [f"{query} 0 {item} {grade}" for (query, item), grade in judged.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def random_judgements(queries, items, rng):
    judged = {}
    for query in queries:
        chosen = rng.choice(len(items), rng.integers(0, 9), replace=False)
        for item in chosen:
            judged[query, items[item]] = int(rng.integers(-1, 4))
    return judged


def plain(similarities, queries, items, judged):
    """Sorts all items: more similar first, then the lower grade (negatives: 0)."""
    sums = {"ndcg10": [], "map": [], "mrr": []}
    for row, query in enumerate(queries):
        grades = {
            item: grade
            for (asked, item), grade in judged.items()
            if asked == query and grade > 0
        }
        if not grades:
            continue
        order = sorted(
            range(len(items)),
            key=lambda i: (-similarities[row, i], grades.get(items[i], 0)),
        )
        listed = [grades.get(items[i], 0) for i in order]

        def dcg(values):
            return sum(g / math.log2(r + 2) for r, g in enumerate(values[:10]))

        sums["ndcg10"].append(dcg(listed) / dcg(sorted(listed, reverse=True)))
        hits = [rank for rank, grade in enumerate(listed, 1) if grade]
        sums["map"].append(sum((k + 1) / r for k, r in enumerate(hits)) / len(hits))
        sums["mrr"].append(1 / hits[0])
    means = {name: 100 * sum(values) / len(values) for name, values in sums.items()}
    return {"queries": len(sums["map"])} | means


@pytest.mark.parametrize("seed", range(5))
def test_all_metrics_equal_a_plain_implementation(seed, embeddings, tmp_path):
    images, captions = embeddings
    rng = np.random.default_rng(seed)
    i2t = random_judgements(IDS, CAPTION_IDS, rng)
    t2i = random_judgements(CAPTION_IDS, IDS, rng)
    file = write(tmp_path / "qrels", i2t | t2i)
    found = qrels_metrics(images, captions, COUNTS, IDS, file)
    similarities = images @ captions.T
    assert found == {
        "i2t": pytest.approx(plain(similarities, IDS, CAPTION_IDS, i2t)),
        "t2i": pytest.approx(plain(similarities.T, CAPTION_IDS, IDS, t2i)),
    }


def test_the_splits_own_pairs_give_its_recalls(tmp_path):
    """MRR of a single positive is the mean of 1 / rank."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(20, 4)).astype(np.float32)
    captions = images + rng.normal(size=(20, 4)).astype(np.float32)
    ids = [str(row) for row in range(20)]
    own = {(i, f"{i}#0"): 1 for i in ids} | {(f"{i}#0", i): 1 for i in ids}
    found = qrels_metrics(images, captions, 1, ids, write(tmp_path / "q", own))
    expected = retrieval_metrics(images, captions, 1)
    for way in ("i2t", "t2i"):
        assert found[way]["queries"] == 20
        assert expected[way]["r1"] / 100 <= found[way]["mrr"] / 100 <= 1
        assert found[way]["mrr"] == pytest.approx(found[way]["map"])


def test_ids_are_joined_in_any_order_and_spelling(embeddings, tmp_path):
    images, captions = embeddings
    judged = {("7", "0#0"): 2, ("0007", "14#1"): 1, ("a.jpg", "0000#0"): 1}
    file = write(tmp_path / "qrels", judged)
    expected = qrels_metrics(images, captions, COUNTS, IDS, file)
    order = np.random.default_rng(1).permutation(len(IDS))
    starts = np.cumsum(COUNTS) - COUNTS
    rows = [starts[i] + k for i in order for k in range(COUNTS[i])]
    found = qrels_metrics(
        images[order], captions[rows], COUNTS[order], [IDS[i] for i in order], file
    )
    assert found == {"i2t": pytest.approx(expected["i2t"])}


def test_what_the_split_lacks_is_left_out(embeddings, tmp_path):
    known = {("7", "0#0"): 1, ("0#0", "7"): 1}
    other = {("7", "0#1"): 1, ("99", "0#0"): 1, ("0#0", "99"): 3, ("99#0", "7"): 1}
    few, all_ = (
        write(tmp_path / name, j)
        for name, j in (("few", known), ("all", known | other))
    )
    expected = qrels_metrics(*embeddings, COUNTS, IDS, few)
    assert qrels_metrics(*embeddings, COUNTS, IDS, all_) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7 0 0#0 1\n7 0 0#1\n", r"qrels, line 2: not 'QUERY 0 ITEM GRADE'"),
        ("7 0 0#0 good\n", r"line 1: not 'QUERY"),
        ("7 0 0#0 nan\n", r"line 1: not 'QUERY"),
        ("7 0 0#0 1\n\n7 0 0#0 2\n", r"line 3: 7 and 0#0 are judged again"),
        ("7 0 14 1\n", r"line 1: 7 and 14 are two images"),
        ("7#0 0 7#1 1\n", r"line 1: 7#0 and 7#1 are two captions"),
        ("7 0 0#0 0\n", r"qrels: no positive is in the split; captions are IMAGE#0"),
        ("", r"qrels: no positive is in the split"),
    ],
)
def test_a_bad_file_is_named(text, message, embeddings, tmp_path):
    file = tmp_path / "qrels"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        qrels_metrics(*embeddings, COUNTS, IDS, file)


def test_a_missing_file_is_named(embeddings, tmp_path):
    with pytest.raises(InputError, match="none"):
        qrels_metrics(*embeddings, COUNTS, IDS, tmp_path / "none")
