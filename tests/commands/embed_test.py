"""Embeddings of a split by one run or several, as --mode=embed writes them."""

import numpy as np

from tests.helpers import tiny
from tests.helpers.runs import write_run
from vse_jax.commands.embed import embed_best
from vse_jax.data.layout import read_split


def test_members_of_an_ensemble_see_the_same_images(tiny_root, tmp_path):
    """Whatever part of dev each of them was validated on."""
    config = tiny.get_config(str(tiny_root))
    config.data.dev_captions = 40
    write_run(config, tmp_path / "one")
    other = tiny.get_config(str(tiny_root))
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
