import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vse_jax.models.gru import BiGRU


def test_a_padded_sequence_gives_what_it_gives_alone():
    gru = BiGRU(5, 4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    lengths = np.array([7, 3, 1])
    mask = np.arange(7) < lengths[:, None]
    padded = gru(jnp.asarray(np.where(mask[..., None], x, 1e6)), jnp.asarray(mask))
    for row, length in enumerate(lengths):
        alone = gru(jnp.asarray(x[row : row + 1, :length]), jnp.ones((1, length), bool))
        for states, expected in zip(padded, alone, strict=True):
            np.testing.assert_allclose(states[row, :length], expected[0], atol=1e-6)
            assert not states[row, length:].any()


def test_both_directions_share_one_loop_and_all_rows_one_sequence():
    gru = BiGRU(5, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 5)), jnp.float32)
    mask = jnp.arange(7) < jnp.array([7, 3, 1])[:, None]
    lowered = jax.jit(lambda x: gru(x, mask)).lower(x)
    assert lowered.as_text().count("stablehlo.while") == 1
    rows = jnp.broadcast_to(x, (3, 7, 5))
    expected = gru.forward(rows, mask), gru.backward(rows, mask)
    for states, direction in zip(lowered.compile()(x), expected, strict=True):
        np.testing.assert_allclose(states, direction, atol=1e-6)
