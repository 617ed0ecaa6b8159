"""What eval_<split>.json holds; the metrics themselves have their own tests."""

import dataclasses

import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.golden_weights import FOLDER as GOLDEN
from vse_jax.base.errors import InputError
from vse_jax.commands.evaluate import format_table, split_metrics
from vse_jax.data.dataset import Split
from vse_jax.data.lines import Lines
from vse_jax.evaluation.cxc import cxc_metrics
from vse_jax.evaluation.encode import Embeddings


@pytest.fixture
def split() -> Split:
    """The 40 images of the CxC golden, as a split of a published data root."""
    ids = (GOLDEN / "cxc_annots" / "testall_ids.txt").read_text().split()[::5]
    return Split(
        "testall",
        GOLDEN,
        Lines.of(ids),
        Lines.of(["a caption"] * 200),
        5 * np.arange(41),
    )


@pytest.fixture
def embeddings() -> Embeddings:
    arrays = np.load(GOLDEN / "cxc.npz")
    return Embeddings(arrays["images"], arrays["captions"])


def test_cxc_and_eccv_only_when_asked(split, embeddings, monkeypatch):
    config = draft(tiny.get_config())
    assert {"cxc", "eccv"}.isdisjoint(split_metrics(config, split, embeddings))
    config.eval.cxc = config.eval.eccv = True
    asked = []
    monkeypatch.setattr(
        "vse_jax.commands.evaluate.eccv_metrics",
        lambda *args: asked.append(args) or {"i2t": 1},
    )
    metrics = split_metrics(config, split, embeddings)
    assert metrics["cxc"] == cxc_metrics(
        embeddings.images,
        embeddings.captions,
        5,
        split.image_ids,
        GOLDEN / "cxc_annots",
    )
    assert metrics["eccv"] == {"i2t": 1}
    assert asked[0][3:] == (split.image_ids, None)


def test_qrels_are_joined_and_reported(split, embeddings, tmp_path):
    config = draft(tiny.get_config())
    config.eval.qrels = str(tmp_path / "own.qrels")
    first, second = split.image_ids[0], split.image_ids[1]
    judged = [f"{first} 0 {first}#2 1", f"{second} 0 {first}#0 2"]
    (tmp_path / "own.qrels").write_text("\n".join(judged))
    metrics = split_metrics(config, split, embeddings)
    assert metrics["qrels"].keys() == {"i2t"}
    assert metrics["qrels"]["i2t"]["queries"] == 2
    lines = format_table(metrics, "coco testall").splitlines()
    _, columns, row = lines[lines.index("TREC qrels") :]
    assert columns.split() == ["nDCG@10", "MAP", "MRR"]
    values = [metrics["qrels"]["i2t"][key] for key in ("ndcg10", "map", "mrr")]
    assert row.split()[3:] == [f"{value:.1f}" for value in values]


def test_cxc_without_its_annotations(split, embeddings, tmp_path):
    config = draft(tiny.get_config())
    config.eval.cxc = True
    other = dataclasses.replace(split, root=tmp_path)
    with pytest.raises(InputError, match="cxc_annots"):
        split_metrics(config, other, embeddings)


DIRECTION = {"r1": 45.25, "r5": 80.0, "r10": 100.0, "medr": 2.0, "meanr": 3.456}
METRICS = {
    "images": 5000,
    "captions": 25000,
    "i2t": DIRECTION,
    "t2i": DIRECTION,
    "rsum": 450.5,
}


def test_table():
    assert format_table(METRICS, "coco testall").splitlines() == [
        "coco testall: 5,000 images, 25,000 captions",
        "                           R@1     R@5    R@10  median    mean",
        "  image to caption        45.2    80.0   100.0     2.0     3.5",
        "  caption to image        45.2    80.0   100.0     2.0     3.5",
        "  rsum                   450.5",
    ]


def test_table_of_all_protocols():
    recalls = {"r1": 44.4, "r5": 70.0, "r10": 80.0}
    precisions = {"map_at_r": 30.8, "rprecision": 41.5, "r1": 70.1}
    metrics = METRICS | {
        "fold5": METRICS | {"images": 1000, "rsum": 500.0},
        "cxc": dict.fromkeys(("i2t", "t2i", "i2i", "t2t"), recalls),
        "eccv": {"i2t": precisions, "t2i": precisions},
    }
    lines = format_table(metrics, "coco testall").splitlines()
    assert lines[5] == "mean of 5 folds of 1,000 images"
    assert lines[9].split() == ["rsum", "500.0"]
    assert lines[10:] == [
        "Crisscrossed Captions",
        "                           R@1     R@5    R@10",
        "  image to caption        44.4    70.0    80.0",
        "  caption to image        44.4    70.0    80.0",
        "  image to image          44.4    70.0    80.0",
        "  caption to caption      44.4    70.0    80.0",
        "ECCV Caption",
        "                           R@1   mAP@R     R-P",
        "  image to caption        70.1    30.8    41.5",
        "  caption to image        70.1    30.8    41.5",
    ]
