"""The equal blocks of a network: traced once, all-gathered one at a time.

A transformer's layers, or the blocks of a ResNet's stage, are a list `Blocks`, which is
called like one of them. Beside it stands what it computes: `blocks_reference`. What the
two do not share is how long a program is traced, and where its parameters lie.

A `jax.lax.scan` over stacked blocks would do that, too, but the stack is a copy of all
parameters: docs/lab/performance.md has what was measured.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh

from vse_jax.distributed.mesh import replicated, state_sharding
from vse_jax.ops.plain import is_plain

M = TypeVar("M", bound=nnx.Module)

# What a block that all-gathers keeps for its gradient, as primitives of JAX. It keeps
# neither its parameters, which are gathered again, nor what is cheap to compute again:
# for XLA all that is kept is an array of its own, of which GELU alone would have five.
_KEPT = (
    *("dot_general", "conv_general_dilated", "reduce_sum", "reduce_max"),
    "name",  # a result that was given one for this, by jax's checkpoint_name
    "max",  # ReLU: the input of the next convolution
    "lt",  # which values dropout keeps
)


class Blocks(nnx.List[nnx.Module]):
    """Blocks that are called one after another, each on what the one before returned.

    Those of equal sizes share one jitted function, which JAX traces, differentiates and
    lowers once (BERT has 12 layers, a ResNet-101 33 blocks).

    Args:
        blocks: parameters and running statistics are all that they hold.
        remat: keep only each block's inputs for the backward pass, and compute the
            block again there.
    """

    def __init__(self, blocks: Iterable[nnx.Module], *, remat: bool = False):
        super().__init__(blocks)
        self.remat = remat
        # How the blocks run: see `place`.
        self.fsdp: Mesh | None = None
        self.inline = True

    def __call__(
        self,
        x: jax.Array,
        *others: Any,
        train: bool,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns `blocks_reference(self, x, *others, train=train, rngs=rngs)`.

        Args:
            x: the first block's input.
            others: further arguments of every block: arrays, None or tuples of them.
            train: also of the blocks; only then their running statistics change.
            rngs: each block gets a key of its own from the stream `dropout`.
        """
        if is_plain():
            return blocks_reference(self, x, *others, train=train, rngs=rngs)
        run: Callable[..., Any] = _run
        if self.remat or self.fsdp:
            keep = None if self.remat else _is_kept
            run = jax.checkpoint(_run, static_argnums=(0, 1, 2, 3), policy=keep)
        for block in self:
            graphdef, *state = nnx.split(block, nnx.Param, nnx.BatchStat)
            key = rngs.dropout() if train and rngs is not None else None
            how = graphdef, train, self.fsdp, self.inline
            with _inlineable("false", unless=self.inline):
                x, stats = run(*how, state, (x, *others), key)
            if train:
                nnx.update(block, stats)
        return x


def blocks_reference(blocks, x, *others, train, rngs=None):
    """What `Blocks` computes, except the random numbers."""
    random = {} if rngs is None else {"rngs": rngs}
    for block in blocks:
        x = block(x, *others, train=train, **random)
    return x


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(graphdef, train, fsdp, inline, state, inputs, key):
    with _inlineable("true", unless=inline):  # what the block itself calls
        params, stats = state
        if fsdp is not None:
            params = _all_gather(fsdp, params, inputs)
        block = nnx.merge(graphdef, params, stats)
        random = {} if key is None else {"rngs": nnx.Rngs(dropout=key)}
        return block(*inputs, train=train, **random), nnx.state(block, nnx.BatchStat)


def _inlineable(value: str, *, unless: bool) -> contextlib.AbstractContextManager:
    """Says whether XLA may put a function that is called here in its call's place."""
    return contextlib.nullcontext() if unless else set_xla_metadata(inlineable=value)


def place(model: M, mesh: Mesh) -> M:
    """Has a model compute on the devices of a mesh; returns it.

    For inside a jitted function, on a model that was merged there.

    - On several devices each parameter is all-gathered before its use: those in
      `Blocks` when their block's turn comes, in the forward pass and again in the
      backward pass; all others at once. Without this XLA's partitioner is free to leave
      parameters and gradients sharded, and to send the activations of the whole batch
      around instead.
    - A module with an attribute `mesh` is told it, for `per_device`.
    - On one CPU the blocks stay functions of the compiled program. In one function XLA
      joins element-wise operations across blocks: the sums of a ResNet's residual
      branches, up to 23, would be computed again in every block.
    """

    def params(module):
        return [v for _, v in nnx.iter_graph(module) if isinstance(v, nnx.Param)]

    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    later = set()
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "mesh"):
            module.mesh = mesh
        if isinstance(module, Blocks):
            module.inline = not one_cpu
            if mesh.shape["fsdp"] > 1:
                module.fsdp = mesh
                later |= set(map(id, params(module)))
    if mesh.size > 1:
        for param in params(model):
            if id(param) not in later:
                whole = with_sharding_constraint(param[...], replicated(mesh))
                param.set_value(whole)
    return model


def _all_gather(mesh: Mesh, params, inputs):
    """The whole parameters of a block whose inputs are there."""
    # Without a barrier XLA would gather many blocks early, and hold them all. The
    # barrier's results would be gathered already if nothing said that they are shards.
    shards = state_sharding(mesh, params)
    params = _after(with_sharding_constraint(params, shards), inputs)
    params = with_sharding_constraint(params, shards)
    return with_sharding_constraint(params, replicated(mesh))


@jax.custom_jvp
def _after(params, inputs):
    """`params`, which nothing reads before the inputs are there."""
    return jax.lax.optimization_barrier((params, inputs))[0]


@_after.defjvp
def _after_jvp(primals, tangents):
    return _after(*primals), tangents[0]


def _is_kept(primitive, *_, **__) -> bool:
    return primitive.name in _KEPT
