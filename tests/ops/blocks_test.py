"""Equal blocks: traced once, and still each its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from vse_jax.distributed.mesh import fsdp_sharding, gathered_sharding, make_mesh
from vse_jax.models.batch_norm import BatchNorm
from vse_jax.ops.blocks import gathered_in_use, keep_apart, run_block


class Block(nnx.Module):
    """A product, batch normalisation, dropout: what the towers' blocks are made of."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = BatchNorm(4)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        x = self.norm(self.linear(x), train=train)
        return self.dropout(x, deterministic=not train, rngs=rngs)


@pytest.fixture
def blocks():
    rngs = nnx.Rngs(0)
    return [Block(rngs) for _ in range(3)]


X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)


def test_equal_blocks_are_one_function_of_the_program(blocks):
    def loss(x):
        for block in blocks:
            x = run_block(block, x, train=False)
        return x.sum()

    text = jax.jit(jax.grad(loss)).lower(X).as_text()
    functions = [
        line for line in text.splitlines() if "func.func private @_run" in line
    ]
    assert len(functions) == 2  # forward and backward, not three times each
    assert text.count("call @_run") == 6


@pytest.mark.parametrize("remat", [False, True])
def test_on_one_cpu_they_stay_functions_in_the_compiled_program(blocks, remat):
    def loss(x):
        for block in blocks:
            x = run_block(block, x, train=False, remat=remat)
        return jnp.square(x).sum()

    def compiled(devices):
        mesh = make_mesh(tiny.get_config(), jax.devices()[:devices])
        return keep_apart(jax.jit(jax.grad(loss)).lower(X), mesh).compile()

    apart, joined = compiled(1), compiled(2)
    assert apart.as_text().count(" call(") >= 6
    assert joined.as_text().count(" call(") == 0
    np.testing.assert_allclose(apart(X), joined(X), rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_a_block_gives_what_it_gives_alone(blocks, remat):
    def through(function):
        return jax.value_and_grad(lambda x: jnp.square(function(x)).sum())(X)

    expected = through(lambda x: blocks[0](x, train=False))
    found = through(lambda x: run_block(blocks[0], x, train=False, remat=remat))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_training_changes_the_statistics_and_evaluation_does_not(blocks):
    block = blocks[0]
    run_block(block, X, train=False)
    np.testing.assert_array_equal(block.norm.mean[...], np.zeros(4))
    run_block(block, X, train=True, rngs=nnx.Rngs(dropout=0))
    expected = 0.1 * block.linear(X).mean(axis=0)
    np.testing.assert_allclose(block.norm.mean[...], expected, rtol=1e-5)


def test_each_block_drops_other_values(blocks):
    rngs = nnx.Rngs(dropout=0)
    first, second = (
        run_block(blocks[0], X, train=True, rngs=rngs) == 0 for _ in range(2)
    )
    assert not np.array_equal(first, second)


def test_parameters_outside_of_blocks_are_gathered_at_once():
    config = tiny.get_config()
    config.mesh.fsdp = 8
    mesh = make_mesh(config)
    params = {"layers": {0: X}, "layer2": {1: X}, "rnn": {0: X}, "fc": X}

    def use(params):
        with gathered_in_use(
            params, gathered_sharding(mesh), fsdp_sharding(mesh)
        ) as params:
            return params

    equations = jax.make_jaxpr(use)(params).eqns
    assert [eqn.primitive.name for eqn in equations] == 2 * ["sharding_constraint"]
