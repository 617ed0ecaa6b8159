"""Equal blocks: traced once, and still each its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.distributed.mesh import make_mesh
from vse_jax.models.layers import BatchNorm
from vse_jax.ops import Blocks, place
from vse_jax.ops.blocks import blocks_reference


class Block(nnx.Module):
    """A product, batch normalisation, dropout: what the towers' blocks are made of."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = BatchNorm(4)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        x = self.norm(self.linear(x), train=train)
        return self.dropout(x, deterministic=not train, rngs=rngs)


def blocks(remat=False):
    rngs = nnx.Rngs(0)
    return Blocks((Block(rngs) for _ in range(3)), remat=remat)


X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)


def mesh_of(devices, fsdp=1):
    config = draft(tiny.get_config())
    config.mesh.fsdp = fsdp
    return make_mesh(config, jax.devices()[:devices])


def test_equal_blocks_are_one_function_of_the_program():
    layers = blocks()
    gradient = jax.grad(lambda x: layers(x, train=False).sum())
    text = jax.jit(gradient).lower(X).as_text()
    functions = [
        line for line in text.splitlines() if "func.func private @_run" in line
    ]
    assert len(functions) == 2  # forward and backward, not three times each
    assert text.count("call @_run") == 6


@pytest.mark.parametrize("remat", [False, True])
def test_on_one_cpu_they_stay_functions_in_the_compiled_program(remat):
    split = nnx.split(blocks(remat))

    def compiled(devices):
        def loss(x):
            placed = place(nnx.merge(*split, copy=True), mesh_of(devices))
            return jnp.square(placed(x, train=False)).sum()

        return jax.jit(jax.grad(loss)).lower(X).compile()

    apart, joined = compiled(1), compiled(2)
    assert apart.as_text().count(" call(") >= 6
    assert joined.as_text().count(" call(") == 0
    np.testing.assert_allclose(apart(X), joined(X), rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_they_give_what_the_reference_gives(remat):
    layers = blocks(remat)

    def through(function):
        return jax.value_and_grad(lambda x: jnp.square(function(x)).sum())(X)

    expected = through(lambda x: blocks_reference(layers, x, train=False))
    found = through(lambda x: layers(x, train=False))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_training_changes_the_statistics_and_evaluation_does_not():
    layers = blocks()
    layers(X, train=False)
    np.testing.assert_array_equal(layers[0].norm.mean[...], np.zeros(4))
    layers(X, train=True, rngs=nnx.Rngs(dropout=0))
    expected = 0.1 * layers[0].linear(X).mean(axis=0)
    np.testing.assert_allclose(layers[0].norm.mean[...], expected, rtol=1e-5)


def test_each_block_drops_other_values():
    rngs = nnx.Rngs(dropout=0)
    one = Blocks([Block(nnx.Rngs(0))])
    first, second = (one(X, train=True, rngs=rngs) == 0 for _ in range(2))
    assert not np.array_equal(first, second)


class Tower(nnx.Module):
    """Blocks, a list of another kind, a layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.inner = Blocks([nnx.Linear(4, 4, rngs=rngs)])
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.fc = nnx.Linear(4, 4, use_bias=False, rngs=rngs)


@pytest.mark.parametrize(("fsdp", "at_once"), [(8, 3), (1, 5)])
def test_parameters_outside_of_blocks_are_gathered_at_once(fsdp, at_once):
    graphdef, params = nnx.split(Tower(), nnx.Param)

    def use(params):
        return nnx.state(
            place(nnx.merge(graphdef, params, copy=True), mesh_of(8, fsdp))
        )

    equations = jax.make_jaxpr(use)(params).eqns
    assert [e.primitive.name for e in equations] == at_once * ["sharding_constraint"]
