"""One optimizer step on the global batch, as one jitted program over the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.stages import Lowered

from vse_jax.base.trees import merge
from vse_jax.data.collate import Shapes, described, shapes_of
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import (
    abstract_batch,
    batch_sharding,
    fsdp_sharding,
    gathered_sharding,
    replicated,
    sharded_for_update,
)
from vse_jax.losses import batch_loss
from vse_jax.microbatches import loss_and_gradients
from vse_jax.models.build import merge_model
from vse_jax.models.vse import VSE
from vse_jax.ops.blocks import gathered_in_use, keep_apart
from vse_jax.training.plan import Plan
from vse_jax.training.state import TrainState


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    groups: tuple[str, ...],
    plan: Plan,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the global batch.

    Args:
        state: before the step.
        batch: see `vse_jax.data.loader`; the first dimension is the global batch.
        groups: parameter groups open in this epoch; static.
        plan: what does not change during a run; static.

    Returns:
        The next state and scalars: loss (the ramp scales what is descended, not what is
        reported), grad_norm (before clipping), lr.
    """
    config, mesh, schedule = plan.config, plan.mesh, plan.schedule

    def embed(open_params, batch_stats, batch, number):
        params = merge(state.params, open_params)
        with gathered_in_use(
            params, gathered_sharding(mesh), fsdp_sharding(mesh)
        ) as params:
            model = {"params": params, "batch_stats": batch_stats}
            rngs = _random_streams(state, number)
            return _embed(merge_model(plan.graphdef, model), batch, rngs)

    def loss_fn(open_params, images, captions):
        model = state.model | {"params": merge(state.params, open_params)}
        loss = merge_model(plan.graphdef, model).loss
        epoch = schedule.epoch(state.step)
        ids = batch["image_ids"] if config.loss.mask_same_image else None
        return batch_loss(loss, images, captions, epoch, ids, mesh)

    loss, grads, stats = loss_and_gradients(
        embed,
        loss_fn,
        plan.optimizer.select(state.params, groups),
        state.batch_stats,
        batch,
        config.microbatches,
    )
    scale = schedule.loss_scale(state.step)
    grads = jax.tree.map(lambda g: scale * g, sharded_for_update(mesh, grads))
    rate = schedule.rate(state.step)
    # Each device updates its shard; `jit_step` gathers the parameters again.
    own = sharded_for_update(mesh, plan.optimizer.select(state.params, groups))
    params, opt_state, norm = plan.optimizer.update(
        grads, state.opt_state, merge(state.params, own), rate, groups
    )
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=stats,
        opt_state=opt_state,
    )
    return new, {"loss": loss, "grad_norm": norm, "lr": rate}


def _random_streams(state: TrainState, number) -> nnx.Rngs:
    """Those of dropout and size augmentation, for a microbatch of the step."""
    step_key = jax.random.fold_in(state.rng, state.step)
    # The first microbatch draws what a whole batch would.
    key = jnp.where(number == 0, step_key, jax.random.fold_in(step_key, number))
    dropout, size = jax.random.split(key)
    return nnx.Rngs(dropout=dropout, size=size)


def _embed(model: VSE, batch: dict[str, jax.Array], rngs: nnx.Rngs):
    """(embeddings of images and captions, new batch statistics)."""
    embeddings = model(batch, train=True, rngs=rngs)
    return embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


class TrainStep:
    """`train_step` with a program for each pair of batch shapes and open groups.

    Args:
        plan: what does not change during the run.
        programs: compiles them.
    """

    def __init__(self, plan: Plan, programs: CompileCache):
        self._jitted = jit_step(plan)
        self._plan = plan
        self._programs = programs

    def prepare(self, shapes: Shapes, groups: tuple[str, ...]) -> None:
        """Begins to compile the program for global batches of these shapes."""
        self._programs.start(*self._program(shapes, groups))

    def __call__(
        self, state: TrainState, batch: dict[str, jax.Array], groups: tuple[str, ...]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """`train_step`; `state` is donated."""
        program = self._programs.get(*self._program(shapes_of(batch), groups))
        return program(state, batch)

    def _program(self, shapes: Shapes, groups: tuple[str, ...]):
        """What `CompileCache` wants to know: (its name, key, how to lower it)."""
        lower = functools.partial(lower_step, self._jitted, self._plan, shapes, groups)
        key = ("train_step", groups, frozenset(shapes.items()))
        return f"train_step, {described(shapes)}", key, lower


def jit_step(plan: Plan):
    """`train_step` jitted over the mesh: step(state, batch, groups), state donated."""
    shardings = jax.tree.map(lambda x: x.sharding, plan.abstract)
    return jax.jit(
        functools.partial(train_step, plan=plan),
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(plan.mesh)),
        out_shardings=(shardings, replicated(plan.mesh)),
    )


def lower_step(jitted, plan: Plan, shapes: Shapes, groups: tuple[str, ...]) -> Lowered:
    """`jit_step`'s result for global batches of these shapes."""
    lowered = jitted.lower(plan.abstract, abstract_batch(shapes), groups)
    return keep_apart(lowered, plan.mesh)
