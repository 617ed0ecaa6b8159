"""Embeddings of a split by one run or several, as --mode=embed writes them."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.runs import Checkpoints, TrainProgress
from vse_jax.commands.embed import embed, embed_best
from vse_jax.commands.evaluate import evaluate
from vse_jax.config import save_config
from vse_jax.data.dataset import read_split
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.models.build import build_model, split_model


def test_members_of_an_ensemble_see_the_same_images(tiny_root, tmp_path):
    """Whatever part of dev each of them was validated on."""
    config = tiny.quick(draft(tiny.get_config(str(tiny_root))))
    config.data.dev_captions = 40
    write_run(config, tmp_path / "one")
    other = tiny.quick(draft(tiny.get_config(str(tiny_root))))
    other.data.dev_captions = 80
    write_run(other, tmp_path / "other", seed=1)
    config.eval.split = "dev"
    split = read_split(config, "dev")
    alone = embed_best(config, tmp_path / "one", split)

    config.eval.ensemble = f"{tmp_path}/one,{tmp_path}/other"
    both = embed_best(config, tmp_path, split)

    assert both.images.shape == (8, 64)
    assert both.captions.shape == (40, 64)
    np.testing.assert_allclose(2 * both.images[:, :32], alone.images, atol=1e-6)


def test_which_image_a_caption_belongs_to(tiny_root, tmp_path):
    shutil.copytree(tiny_root, tmp_path / "tiny")
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    tiny.make_uneven(tmp_path / "tiny")
    config = tiny.quick(draft(tiny.get_config(str(tmp_path / "tiny"))))
    write_run(config, tmp_path / "run")
    embed(config, tmp_path / "run")
    folder = tmp_path / "run/embeddings/test"
    images, captions, owners = (
        np.load(folder / f"{name}.npy")
        for name in ("images", "captions", "caption_images")
    )
    counts = [1 + i % 5 for i in range(32)]
    assert owners.tolist() == np.repeat(np.arange(32), counts).tolist()
    assert (len(images), len(captions)) == (32, sum(counts))
    evaluate(config, tmp_path / "run")
    found = json.loads((tmp_path / "run/eval_test.json").read_text())
    assert found == retrieval_metrics(images, captions, np.array(counts))


def test_embeddings_that_are_not_finite_are_not_written(tiny_config, tmp_path):
    save_config(tiny_config, tmp_path / "config.json")
    _, model = split_model(build_model(tiny_config, rngs=nnx.Rngs(0)))
    bias = model["params"]["image"]["fc"]["bias"]
    model["params"]["image"]["fc"]["bias"] = np.full_like(bias, np.nan)
    with Checkpoints(tmp_path) as checkpoints:
        progress = TrainProgress(1, 1, best_rsum=1.0, best_step=1, best_epoch=1)
        checkpoints.save(model, None, progress)
    message = rf"{tmp_path}, images of 'test': 32 of 32 embeddings are NaN or infinite"
    with pytest.raises(InputError, match=message):
        embed(tiny_config, tmp_path)
    assert not (tmp_path / "embeddings").exists()
