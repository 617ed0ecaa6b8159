"""The study's own GPOs: what they change, and that they change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from studies.pools import Colder, FromMaximum
from vse_jax.models.gpo import GPO

LENGTHS = jnp.array([1, 5, 49])


def weights(kind):
    graphdef, state = nnx.split(kind(rngs=nnx.Rngs(0)))
    generate = jax.jit(lambda state: nnx.merge(graphdef, state).weights(LENGTHS, 49))
    return np.asarray(generate(state), np.float64)


@pytest.fixture(scope="module")
def paper():
    return weights(GPO)


def test_scores_reach_ten_times_as_far(paper):
    wanted = (paper[2] / paper[2].max()) ** 10
    np.testing.assert_allclose(weights(Colder)[2], wanted / wanted.sum(), rtol=1e-4)


def test_begins_at_the_maximum(paper):
    found = weights(FromMaximum)
    assert found[2, 0] > 0.8 > 5 * paper[2, 0]
    # The other ranks keep their proportions.
    np.testing.assert_allclose(
        found[2, 1:] / found[2, 1:].sum(), paper[2, 1:] / paper[2, 1:].sum(), rtol=1e-4
    )


@pytest.mark.parametrize("kind", [Colder, FromMaximum])
def test_weights_are_shares_of_the_set(kind):
    found = weights(kind)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    for row, length in zip(found, LENGTHS, strict=True):
        assert (row[int(length) :] == 0).all()
