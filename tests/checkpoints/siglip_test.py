"""Position embeddings of another picture size, and parts of a SigLIP folder."""

import jax
import numpy as np
import pytest

from vse_jax.checkpoints.siglip import resize_positions


def test_positions_by_hand():
    """Two cells, 0 and 1, as four: at −¼, ¼, ¾ and 1¼ of the way."""
    grid = np.tile(np.float32([0, 1]), 2)[:, None]
    expected = np.tile(np.float32([0, 0.25, 0.75, 1]), 4)[:, None]
    np.testing.assert_allclose(resize_positions(grid, 16), expected, atol=1e-6)


@pytest.mark.parametrize("new", [2, 5, 8, 11, 16])
def test_positions_equal_jaxs_antialiased_resize(new):
    positions = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    expected = jax.image.resize(positions.reshape(8, 8, 3), (new, new, 3), "bilinear")
    found = resize_positions(positions, new * new)
    np.testing.assert_allclose(found, expected.reshape(-1, 3), atol=1e-5)


def test_positions_of_the_same_size_stay_to_the_bit():
    positions = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    assert resize_positions(positions, 64) is positions
