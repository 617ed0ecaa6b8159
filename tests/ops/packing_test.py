"""Packing and unpacking, and their gradients, equal indexing and a scatter."""

import jax
import jax.numpy as jnp
import numpy as np

from vse_jax.ops import pack, unpack
from vse_jax.ops.packing import pack_reference, unpack_reference


def test_both_equal_their_references_and_are_inverse():
    rng = np.random.default_rng(0)
    mask = jnp.arange(6) < jnp.array([6, 1, 3])[:, None]
    x = jnp.where(mask[..., None], jnp.asarray(rng.normal(size=(3, 6, 4))), 0)
    places = jnp.append(jnp.flatnonzero(mask), jnp.full(2, mask.size))
    packed = pack(x, mask, places)
    assert packed.shape == (12, 4)
    np.testing.assert_array_equal(unpack(packed, mask, places), x)
    for function, reference, value in (
        (pack, pack_reference, x),
        (unpack, unpack_reference, packed),
    ):
        found, pull = jax.vjp(lambda v, f=function: f(v, mask, places), value)
        expected, pull_expected = jax.vjp(
            lambda v, f=reference: f(v, mask, places), value
        )
        np.testing.assert_array_equal(found, expected)
        cotangent = jnp.asarray(rng.normal(size=found.shape), found.dtype)
        if function is pack:  # what fills the row up is of no token
            cotangent = jnp.where((places < mask.size)[:, None], cotangent, 0)
        else:  # nor is padding
            cotangent = jnp.where(mask[..., None], cotangent, 0)
        np.testing.assert_array_equal(pull(cotangent)[0], pull_expected(cotangent)[0])
