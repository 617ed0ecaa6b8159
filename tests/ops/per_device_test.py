"""Each device computes for the rows that it holds: equal to all rows on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vse_jax.config import typed
from vse_jax.distributed.mesh import batch_sharding, make_mesh
from vse_jax.models.gpo import GPO
from vse_jax.models.gru import BiGRU
from vse_jax.ops import conv2d, pack, place, unpack
from vse_jax.ops.per_device import per_device

MESH = make_mesh(typed({"mesh.fsdp": 2}))


def check(function, params, *rows):
    """Compares function(mesh, params, *rows) over devices and on one, and gradients."""

    def of(mesh):
        def loss(params, *rows):
            return sum(
                jnp.sin(y).sum() for y in jax.tree.leaves(function(mesh, params, *rows))
            )

        return jax.jit(lambda *of: (function(mesh, *of), jax.grad(loss)(*of)))

    spread = [jax.device_put(x, batch_sharding(MESH)) for x in rows]
    found = jax.device_get(of(MESH)(params, *spread))
    expected = jax.device_get(of(None)(params, *rows))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def normal(*shape):
    return jnp.asarray(
        np.random.default_rng(len(shape)).normal(size=shape), jnp.float32
    )


def test_gradients_of_what_all_devices_hold_are_summed_once():
    check(
        lambda mesh, params, x: per_device(mesh, lambda p, x: x @ p, params, x),
        normal(3, 5),
        normal(16, 3),
    )


def test_rows_that_do_not_divide_are_computed_by_all():
    x = normal(6, 3)  # eight devices
    found = jax.jit(lambda x: per_device(MESH, lambda p, x: p * x, 2.0, x))(x)
    np.testing.assert_array_equal(found, 2 * x)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_grouped_convolution(stride):
    check(
        lambda mesh, kernel, x: conv2d(x, kernel, stride, 4, mesh),
        normal(3, 3, 2, 8),
        normal(8, 6, 6, 8),
    )


@pytest.mark.parametrize("kind", ["bigru", "gpo"])
def test_a_loop_over_positions(kind):
    rngs = nnx.Rngs(0)
    module = BiGRU(4, 8, rngs=rngs) if kind == "bigru" else GPO(8, 8, rngs=rngs)
    definition, params = nnx.split(module)

    def function(mesh, params, x, lengths):
        module = nnx.merge(definition, params)
        module = module if mesh is None else place(module, mesh)
        return module(x, jnp.arange(x.shape[1]) < lengths[:, None])

    check(function, params, normal(16, 5, 4), jnp.arange(16) % 5 + 1)


def test_packed_captions_of_each_device():
    """Places count from a device's first caption; what fills a row up is 12."""
    mask = np.arange(6) < (np.arange(16) % 6 + 1)[:, None]
    ids = np.where(mask, np.arange(1, 97).reshape(16, 6), 0)
    places = np.full((8, 12), 2 * 6)
    for own, real in zip(places, mask.reshape(8, -1), strict=True):
        own[: real.sum()] = np.flatnonzero(real)

    def there_and_back(ids, mask, places):
        packed = pack(ids[..., None], mask, places, MESH)
        return packed[..., 0], unpack(1.0 * packed, mask, places, MESH)[..., 0]

    spread = [jax.device_put(a, batch_sharding(MESH)) for a in (ids, mask, places)]
    packed, unpacked = jax.jit(there_and_back)(*spread)
    np.testing.assert_array_equal(unpacked, ids)
    own = ids.reshape(8, 12)[3][mask.reshape(8, 12)[3]]
    np.testing.assert_array_equal(packed[3][: len(own)], own)
