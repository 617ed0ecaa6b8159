"""What eval_<split>.json holds; the metrics themselves have their own tests."""

import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.golden_weights import FOLDER as GOLDEN
from vse_jax.base.errors import InputError
from vse_jax.commands.evaluate import split_metrics
from vse_jax.data.dataset import Split
from vse_jax.evaluation.cxc import cxc_metrics
from vse_jax.evaluation.encode import Embeddings


@pytest.fixture
def split() -> Split:
    """The 40 images of the CxC golden, as a split of a published data root."""
    ids = (GOLDEN / "cxc_annots" / "testall_ids.txt").read_text().split()[::5]
    return Split("testall", GOLDEN, ids, ["a caption"] * 200, 5, None, None)


@pytest.fixture
def embeddings() -> Embeddings:
    arrays = np.load(GOLDEN / "cxc.npz")
    return Embeddings(arrays["images"], arrays["captions"])


def test_cxc_and_eccv_only_when_asked(split, embeddings, monkeypatch):
    config = tiny.get_config()
    assert {"cxc", "eccv"}.isdisjoint(split_metrics(config, split, embeddings))
    config.eval.cxc = config.eval.eccv = True
    asked = []
    monkeypatch.setattr(
        "vse_jax.commands.evaluate.eccv_metrics",
        lambda *args: asked.append(args) or {"i2t": 1},
    )
    metrics = split_metrics(config, split, embeddings)
    assert metrics["cxc"] == cxc_metrics(
        embeddings.images, embeddings.captions, split.image_ids, GOLDEN / "cxc_annots"
    )
    assert metrics["eccv"] == {"i2t": 1}
    assert asked[0][2:] == (split.image_ids, None)


def test_cxc_without_its_annotations(split, embeddings, tmp_path):
    config = tiny.get_config()
    config.eval.cxc = True
    other = Split("testall", tmp_path, split.image_ids, split.captions, 5, None, None)
    with pytest.raises(InputError, match="cxc_annots"):
        split_metrics(config, other, embeddings)
