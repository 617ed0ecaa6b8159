"""The equal blocks of a network, traced once instead of once each."""

import functools

import jax
from flax import nnx


def run_block(
    block: nnx.Module,
    *inputs: jax.Array,
    train: bool,
    rngs: nnx.Rngs | None = None,
    remat: bool = False,
) -> jax.Array:
    """`block(*inputs, train=train)` as a jitted function that its equals share.

    JAX traces, differentiates and lowers such a function once for all blocks of the
    same sizes (BERT has 12, a ResNet-101 33); XLA puts it in the place of each call.

    Args:
        block: parameters and running statistics are all it holds.
        inputs: its arguments.
        train: also of the block; only then its running statistics change.
        rngs: gives a key of the stream `dropout`; the block gets `rngs` of its own.
        remat: keep only the inputs for the backward pass, and compute the block again
            there.
    """
    graphdef, *state = nnx.split(block, nnx.Param, nnx.BatchStat)
    key = rngs.dropout() if train and rngs is not None else None
    run = jax.checkpoint(_run, static_argnums=(0, 1)) if remat else _run
    result, stats = run(graphdef, train, state, inputs, key)
    if train:
        nnx.update(block, stats)
    return result


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(graphdef, train, state, inputs, key):
    block = nnx.merge(graphdef, *state)
    random = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
    return block(*inputs, train=train, **random), nnx.state(block, nnx.BatchStat)
