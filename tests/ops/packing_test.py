"""Packing and unpacking, and their gradients, equal indexing and a scatter."""

import jax
import jax.numpy as jnp
import numpy as np

from vse_jax.ops import pack, unpack
from vse_jax.ops.packing import pack_reference, unpack_reference

MASK = jnp.arange(6) < jnp.array([6, 1, 3])[:, None]
# Two rows of 8: the first and the second caption; the third. 18 fills up.
PLACES = jnp.array(
    [[0, 1, 2, 3, 4, 5, 6, 18], [12, 13, 14, 18, 18, 18, 18, 18]], jnp.int32
)


def test_both_equal_their_references_and_are_inverse():
    rng = np.random.default_rng(0)
    x = jnp.where(MASK[..., None], jnp.asarray(rng.normal(size=(3, 6, 4))), 0)
    packed = pack(x, MASK, PLACES)
    assert packed.shape == (2, 8, 4)
    np.testing.assert_array_equal(unpack(packed, MASK, PLACES), x)
    for function, reference, value in (
        (pack, pack_reference, x),
        (unpack, unpack_reference, packed),
    ):
        found, pull = jax.vjp(lambda v, f=function: f(v, MASK, PLACES), value)
        expected, pull_expected = jax.vjp(
            lambda v, f=reference: f(v, MASK, PLACES), value
        )
        np.testing.assert_array_equal(found, expected)
        cotangent = jnp.asarray(rng.normal(size=found.shape), found.dtype)
        if function is pack:  # what fills the rows up is of no token
            cotangent = jnp.where((MASK.size > PLACES)[..., None], cotangent, 0)
        else:  # nor is padding
            cotangent = jnp.where(MASK[..., None], cotangent, 0)
        np.testing.assert_array_equal(pull(cotangent)[0], pull_expected(cotangent)[0])
