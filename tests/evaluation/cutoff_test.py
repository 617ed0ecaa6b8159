"""From which similarity on a model takes an image for what a caption says."""

import json
import math

import numpy as np
import pytest

import vse_jax
from tests.helpers import siglip
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.commands.evaluate import evaluate
from vse_jax.commands.push import push
from vse_jax.evaluation import cutoff
from vse_jax.evaluation.cutoff import recall_cutoff, sigmoid_cutoff
from vse_jax.train import train


def test_by_hand():
    """Ten captions: the right image of one is less similar than the cut-off."""
    images = np.eye(2, dtype=np.float32)
    right = np.linspace(0.1, 1.0, 10, dtype=np.float32)
    wrong = np.float32([0, 0, 0, 0, 0, 0, 0, 0.3, 0.15, 0])
    captions = np.stack([right, wrong], axis=1)
    score, passing = recall_cutoff(images, captions, np.zeros(10, int))
    assert score == pytest.approx(0.1 + 0.0)
    assert passing == pytest.approx((10 + 2) / 10)


def test_nine_of_ten_right_pairs_reach_it(monkeypatch):
    """Also where the similarities are looked through in many blocks."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 8)).astype(np.float32)
    rows = rng.integers(0, 40, 170)
    captions = images[rows] + 2 * rng.normal(size=(170, 8)).astype(np.float32)
    whole = recall_cutoff(images, captions, rows)
    monkeypatch.setattr(cutoff, "_BLOCK", 100)
    score, passing = recall_cutoff(images, captions, rows)
    assert (score, passing) == pytest.approx(whole, rel=1e-6)
    similarities = captions @ images.T
    reached = similarities[np.arange(170), rows] >= score - 1e-5
    assert 0.9 <= reached.mean() <= 0.9 + 1 / 170
    assert passing == pytest.approx((similarities >= score - 1e-5).sum() / 170)


def test_a_published_siglip_has_that_of_its_sigmoid(tmp_path):
    """Its folder's temperature and bias are 2 and −3 (helpers/siglip.py)."""
    model = vse_jax.load(siglip.write_folder(tmp_path / "siglip", siglip.peer()))
    probability = 1 / (1 + np.exp(-(np.exp(2) * model.cutoff - 3)))
    assert probability == pytest.approx(cutoff.LEAST_PROBABILITY, rel=1e-5)
    assert sigmoid_cutoff(math.log(10), -10.0) == pytest.approx(0.3093, abs=1e-4)


def refuse(*_, **__):
    raise InputError("stopped")


@pytest.mark.usefixtures("without_figures")
def test_training_fits_it_on_dev_and_evaluation_fits_it_again(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.num_epochs, tiny_config.max_steps = 1, 2
    train(tiny_config, tmp_path)
    kept = json.loads((tmp_path / "cutoff.json").read_text())
    assert (kept["split"], kept["images"]) == ("dev", 32)
    assert kept["recall"] == 0.9
    assert vse_jax.load(tmp_path).cutoff == kept["score"]
    assert vse_jax.load(tmp_path, {"dims": 8}).cutoff is None
    # A run that goes on and is stopped has none: it would be an earlier model's.
    monkeypatch.setattr("vse_jax.train.evaluate", refuse)
    with pytest.raises(InputError, match="stopped"):
        train(tiny_config, tmp_path)
    evaluate(tiny_config, tmp_path)  # of the test split
    assert vse_jax.load(tmp_path).cutoff is None
    tiny_config.eval.split = "dev"
    evaluate(tiny_config, tmp_path / "elsewhere", tmp_path)
    assert not (tmp_path / "elsewhere" / "cutoff.json").exists()
    evaluate(tiny_config, tmp_path)
    assert vse_jax.load(tmp_path).cutoff == pytest.approx(kept["score"], abs=1e-5)


def test_it_is_shared_with_the_model(tiny_config, tmp_path):
    folder = write_run(tiny_config, tmp_path / "run")
    (folder / "cutoff.json").write_text('{"score": 0.25, "dims": 32}')
    push(tiny_config, folder, None)
    assert vse_jax.load(folder / "share").cutoff == 0.25


@pytest.mark.parametrize("score", ['"0.2"', "null", "NaN", "[0.2]"])
def test_what_is_no_number_is_named(score, tiny_config, tmp_path):
    folder = write_run(tiny_config, tmp_path / "run")
    (folder / "cutoff.json").write_text(f'{{"score": {score}}}')
    with pytest.raises(InputError, match=r"cutoff\.json: score is .*, no number"):
        vse_jax.load(folder)
