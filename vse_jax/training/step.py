"""One optimizer step on the global batch, as one jitted program over the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vse_jax.base.trees import merge
from vse_jax.devices.mesh import (
    batch_sharding,
    cut,
    free_after_use,
    gathered,
    replicated,
)
from vse_jax.models.build import merge_model
from vse_jax.models.vse import VSE
from vse_jax.training.losses import hinge_loss
from vse_jax.training.microbatches import loss_and_gradients
from vse_jax.training.optimizer import Optimizer, Schedule
from vse_jax.training.state import TrainState


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    groups: tuple[str, ...],
    *,
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    schedule: Schedule,
    margin: float,
    mesh: Mesh,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the global batch.

    Args:
        state: before the step.
        batch: see `vse_jax.data.pipeline`; the first dimension is the global batch.
        groups: parameter groups open in this epoch; static.
        graphdef, optimizer, schedule, margin, mesh, microbatches: what does not change
            during a run.

    Returns:
        The next state and scalars: loss (sum over the batch, paper Eq. 5; the ramp
        scales what is descended, not what is reported), grad_norm (before clipping),
        lr.
    """

    def embed(open_params, batch_stats, batch, number):
        params = gathered(mesh, merge(state.params, open_params))
        model = {"params": params, "batch_stats": batch_stats}
        rngs = _random_streams(state, number)
        return _embed(merge_model(graphdef, model), batch, rngs)

    def loss_fn(images, captions):
        return hinge_loss(images, captions, margin, schedule.hardest(state.step), mesh)

    loss, grads, stats = loss_and_gradients(
        free_after_use(mesh, embed),
        loss_fn,
        optimizer.select(state.params, groups),
        state.batch_stats,
        batch,
        microbatches,
    )
    scale = schedule.loss_scale(state.step)
    grads = jax.tree.map(lambda g: scale * g, cut(mesh, grads))
    rate = schedule.rate(state.step)
    params, opt_state, norm = optimizer.update(
        grads, state.opt_state, state.params, rate, groups
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


def compile_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    schedule: Schedule,
    mesh: Mesh,
    abstract: TrainState,
):
    """`train_step` jitted over the mesh: step(state, batch, groups), state donated."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(
        functools.partial(
            train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            schedule=schedule,
            margin=config.loss.margin,
            mesh=mesh,
            microbatches=config.microbatches,
        ),
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
