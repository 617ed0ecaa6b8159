"""The equal blocks of a network: traced once, gathered one at a time."""

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, Sharding
from jax.stages import Lowered
from jaxlib.mlir import ir

Params = Any  # a tree of arrays
_LISTS = re.compile(r"layer(s|\d+)")  # names of the lists of blocks
# What a block keeps for its gradient, as primitives of JAX: see `_kept`.
_KEPT = (
    *("dot_general", "conv_general_dilated", "reduce_sum", "reduce_max"),
    "name",  # a result that was given one for this, by jax's checkpoint_name
    "max",  # ReLU: the input of the next convolution
    "lt",  # which values dropout keeps
)
_IS_RUN = re.compile(r"_run(_\d+)?")  # names of `_run` in a program


class Gather(NamedTuple):
    """All-gathers the parameters of a block when its turn comes.

    Args:
        sharded: gives the shardings of a tree of parameters as the devices hold them.
        gathered: the sharding of a parameter that a computation uses.
    """

    sharded: Callable[[Params], Params]
    gathered: Sharding

    def __call__(self, params: Params, inputs: tuple[jax.Array | None, ...]) -> Params:
        # XLA would gather many blocks early, and hold them all. The barrier's results
        # would be gathered already if nothing said that they are shards.
        sharded = self.sharded(params)
        params = _after(_constrain(params, sharded), inputs)
        return _constrain(_constrain(params, sharded), self.gathered)


_IN_BLOCKS: contextvars.ContextVar[Gather | None] = contextvars.ContextVar(
    "in_blocks", default=None
)


@contextlib.contextmanager
def gathered_in_use(
    params: Params,
    gathered: Sharding | None,
    sharded: Callable[[Params], Params] | None,
) -> Iterator[Params]:
    """Gives a model's parameters as its computation inside uses them.

    Without this XLA's partitioner is free to leave them and their gradients sharded,
    and to send the activations of the whole batch around instead.

    Args:
        params: the model's.
        gathered: the sharding of a parameter in use; None: there is one device.
        sharded: see `Gather`; None: every device has all of each. `run_block`
            gathers the parameters of a block when its turn comes, in the forward pass
            and again in the backward pass.
    """
    if gathered is None:
        yield params
        return

    def gather(path, x):
        in_a_block = any(_LISTS.fullmatch(str(key.key)) for key in path)
        return x if sharded and in_a_block else _constrain(x, gathered)

    token = _IN_BLOCKS.set(Gather(sharded, gathered) if sharded else None)
    try:
        yield jax.tree.map_with_path(gather, params)
    finally:
        _IN_BLOCKS.reset(token)


_constrain = jax.lax.with_sharding_constraint


def run_block(
    block: nnx.Module,
    *inputs: jax.Array | None,
    train: bool,
    rngs: nnx.Rngs | None = None,
    remat: bool = False,
) -> jax.Array:
    """`block(*inputs, train=train)` as a jitted function that its equals share.

    JAX traces, differentiates and lowers such a function once for all blocks of the
    same sizes (BERT has 12, a ResNet-101 33); XLA puts it in the place of each call.

    Args:
        block: parameters and running statistics are all it holds. It is an element of
            a list named layers, or layer1, layer2, …, by which `gathered_in_use`
            knows it.
        inputs: its arguments.
        train: also of the block; only then its running statistics change.
        rngs: gives a key of the stream `dropout`; the block gets `rngs` of its own.
        remat: keep only the inputs for the backward pass, and compute the block again
            there.
    """
    graphdef, *state = nnx.split(block, nnx.Param, nnx.BatchStat)
    key = rngs.dropout() if train and rngs is not None else None
    gather = _IN_BLOCKS.get()
    run: Callable[..., Any] = _run
    if remat or gather:
        kept = None if remat else _kept
        run = jax.checkpoint(_run, static_argnums=(0, 1, 2), policy=kept)
    result, stats = run(graphdef, train, gather, state, inputs, key)
    if train:
        nnx.update(block, stats)
    return result


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(graphdef, train, gather, state, inputs, key):
    if gather:
        params, stats = state
        state = gather(params, inputs), stats
    block = nnx.merge(graphdef, *state)
    random = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
    return block(*inputs, train=train, **random), nnx.state(block, nnx.BatchStat)


@jax.custom_jvp
def _after(params, inputs):
    """`params`, which nothing reads before the inputs are there."""
    return jax.lax.optimization_barrier((params, inputs))[0]


@_after.defjvp
def _after_jvp(primals, tangents):
    return _after(*primals), tangents[0]


def _kept(primitive, *_, **__) -> bool:
    """A policy of jax.checkpoint: what a block that gathers keeps for its gradient.

    Neither its parameters, which are gathered anew, nor what is cheap to compute again
    from the rest: for XLA all that is kept is an array of its own, of which GELU alone
    would have five.
    """
    return primitive.name in _KEPT


def keep_apart(lowered: Lowered, mesh: Mesh) -> Lowered:
    """Has XLA leave the blocks of a program for one CPU as functions of their own.

    In one function it joins element-wise operations across blocks: the sums of a
    ResNet's residual branches, up to 23, would be computed anew in every block.

    Args:
        lowered: changed in place; on other devices, and on several, it stays as it is.
        mesh: what it is for.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return lowered
    module: Any = lowered.compiler_ir()
    with module.context:
        apart = ir.DictAttr.get({"inlineable": ir.StringAttr.get("false")})

    def mark(op):
        if op.name == "func.call" and _IS_RUN.fullmatch(op.attributes["callee"].value):
            op.attributes["mhlo.frontend_attributes"] = apart
        return ir.WalkResult.ADVANCE

    module.operation.walk(mark)
    return lowered
