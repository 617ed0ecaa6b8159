"""The training loop: one jitted step over the mesh, validation, checkpoints, resume."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vse_jax.base.config import (
    EVALUATION_FREE_FIELDS,
    FREE_FIELDS,
    check_same_run,
    save_config,
)
from vse_jax.base.errors import InputError
from vse_jax.base.progress import progress
from vse_jax.base.trees import merge
from vse_jax.data.layout import Split, read_split
from vse_jax.data.pipeline import TrainData
from vse_jax.devices import cluster, preemption
from vse_jax.devices.mesh import (
    batch_sharding,
    check_training_batch,
    make_mesh,
    put_batch,
    replicated,
)
from vse_jax.evaluation.evaluator import Evaluator, evaluate
from vse_jax.search.plots import curves_picture
from vse_jax.training.checkpoint import Checkpoints
from vse_jax.training.losses import hinge_loss
from vse_jax.training.metric_writer import MetricWriter
from vse_jax.training.microbatches import loss_and_gradients
from vse_jax.training.optimizer import Optimizer, Schedule
from vse_jax.training.recorder import Recorder
from vse_jax.training.state import (
    TrainState,
    abstract_model,
    abstract_state,
    initial_state,
    merge_model,
)
from vse_jax.training.token_features import cached_token_features


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    groups: tuple[int, ...],
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
    step_key = jax.random.fold_in(state.rng, state.step)

    def embed(open_params, batch_stats, batch, number):
        params = merge(state.params, open_params)
        model = merge_model(graphdef, {"params": params, "batch_stats": batch_stats})
        # The first microbatch draws what a whole batch would.
        key = jnp.where(number == 0, step_key, jax.random.fold_in(step_key, number))
        dropout, size = jax.random.split(key)
        rngs = nnx.Rngs(dropout=dropout, size=size)
        embeddings = model(batch, train=True, rngs=rngs)
        return embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def loss_fn(images, captions):
        return hinge_loss(images, captions, margin, schedule.hardest(state.step), mesh)

    loss, grads, stats = loss_and_gradients(
        embed,
        loss_fn,
        optimizer.select(state.params, groups),
        state.batch_stats,
        batch,
        microbatches,
    )
    scale = schedule.loss_scale(state.step)
    grads = jax.tree.map(lambda g: scale * g, grads)
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


def compile_step(config, graphdef, optimizer, schedule, mesh: Mesh, abstract):
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


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains in `workdir`, or goes on where it stopped, and ends with the test metrics.

    Raises:
        InputError: bad config or data, another config's workdir, NaN loss, full disk.
        Preempted: SIGTERM came, and what was reached is on disk.
    """
    # Read everything that can be wrong before any time is spent on training.
    mesh = make_mesh(config)
    check_training_batch(config, mesh)
    split = read_split(config, config.data.train_split)
    dev = read_split(config, config.data.dev_split)
    test = read_split(config, config.eval.split)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}") from error
    with Checkpoints(workdir) as checkpoints:
        steps = {"last": checkpoints.last_step(), "best": checkpoints.best_step()}
        cluster.check_same("workdir", steps)
        saved = workdir / "config.json"
        # Process 0 wrote it: where another host keeps its files is not in there.
        hosts_own = cluster.HOSTS_OWN if jax.process_index() else ()
        if steps["last"] is not None and saved.exists():
            check_same_run(config, saved, FREE_FIELDS + hosts_own)
        elif steps["best"] == 0 and saved.exists():
            # Converted weights: the model is given, the recipe is free.
            check_same_run(config, saved, EVALUATION_FREE_FIELDS)
        schedule = _fit(config, workdir, mesh, (split, dev, test), checkpoints)
    if jax.process_index() == 0:
        curves_picture(workdir, schedule)
    evaluate(config, workdir)


def _fit(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    splits: tuple[Split, Split, Split],
    checkpoints: Checkpoints,
) -> Schedule:
    """Everything of `train` between the reading of the data and the test."""
    split, dev, _ = splits
    # Model, optimizer, and where an earlier run stopped.
    graphdef, model = abstract_model(config)
    optimizer = Optimizer(config.optimizer, model["params"])
    abstract = abstract_state(config, optimizer, mesh)
    best_rsum = -1.0  # below any: the first validation is the best so far
    validated = True  # False: steps were made since the last validation
    unwritten: list = []  # scalars of steps since the last line of metrics.jsonl
    converted_epoch = None
    if checkpoints.last_step() is not None:
        kept, rest, saved = checkpoints.restore_last(abstract.model, abstract.rest)
        state = TrainState(**kept, **rest)
        best_rsum = saved["best_rsum"]
        validated = saved.get("validated", True)
        unwritten = saved.get("unwritten", [])
        logging.info("resumed from step %d", int(state.step))
    else:
        state = initial_state(config, optimizer, mesh)
        if checkpoints.best_step() == 0:  # no step was made here: converted weights
            kept, released = checkpoints.restore_best(abstract.model)
            state = dataclasses.replace(state, **kept)
            converted_epoch = released["epoch"]
            logging.info("converted weights; goes on after epoch %d", converted_epoch)
    evaluator = Evaluator(config, graphdef, mesh)
    for each in splits:
        evaluator.tokens(each)  # whose captions may be wrong, too
    features = dev_features = None
    if config.text.cache_features:
        if config.text.augment or not optimizer.never_opens("text/bert/"):
            raise InputError(
                "config.text.cache_features: needs text.augment = 0 and a rule in "
                "optimizer.rules that never opens ^text/bert/"
            )
        cache = workdir / "cache"
        features = cached_token_features(evaluator, state.model, split, cache)
        dev_features = cached_token_features(evaluator, state.model, dev, cache)

    # The loop. Its order is fixed: the checkpoint of a step is started before the next
    # batch is drawn, so that what is saved is exactly what has been trained on.
    data = TrainData(config, split, evaluator.tokens(split), features)
    schedule = Schedule.from_config(
        config, data.steps_per_epoch, ramp_steps=data.pairs // config.batch_size + 1
    )
    total = config.num_epochs * schedule.steps_per_epoch
    if config.max_steps is not None:
        total = min(total, config.max_steps)
    run_step = compile_step(config, graphdef, optimizer, schedule, mesh, abstract)
    if converted_epoch is not None:
        made_elsewhere = converted_epoch * schedule.steps_per_epoch
        state = dataclasses.replace(state, step=state.step + made_elsewhere)
    step = int(state.step)
    if jax.process_index() == 0:
        save_config(config, workdir / "config.json")
    writer = MetricWriter(workdir, active=jax.process_index() == 0)
    writer.truncate_after(step, validated)
    recorder = Recorder(config, writer, unwritten)
    if converted_epoch is not None:
        # What the converted weights reach on this data is what training has to beat.
        metrics = evaluator.evaluate(state.model, dev, dev_features)
        best_rsum = metrics["rsum"]
        writer.write(step, _scalars(f"eval/{dev.name}", metrics))
        _save_last(checkpoints, step, state, best_rsum, validated)
    if step < total:
        logging.info("compiling the training step")
    process = (jax.process_index(), jax.process_count())
    try:
        with data.batches(step, *process) as batches:
            while step < total or not validated:
                # Stopped between an epoch's last step and its validation, a run goes on
                # with the latter.
                epoch = schedule.epoch(step if validated else step - 1)
                groups = optimizer.open_groups(epoch)
                end = min(total, (epoch + 1) * schedule.steps_per_epoch)
                for _ in progress(
                    range(end - step),
                    f"epoch {epoch + 1}/{config.num_epochs}",
                    total=schedule.steps_per_epoch,
                    unit="step",
                    initial=step % schedule.steps_per_epoch,
                ):
                    preemption.check()
                    batch = recorder.timed_next(batches)
                    batch = put_batch(batch, batch_sharding(mesh))
                    state, scalars = run_step(state, batch, groups)
                    step += 1
                    validated = False
                    recorder.add(step, scalars)
                    every = config.checkpoint.every_steps
                    if every and step % every == 0 and step < end:
                        recorder.flush(step)
                        _save_last(checkpoints, step, state, best_rsum, validated)
                recorder.flush(step)
                metrics = evaluator.evaluate(state.model, dev, dev_features)
                writer.write(step, _scalars(f"eval/{dev.name}", metrics))
                # Process 0 decides: another processor may rank a near tie otherwise,
                # and processes that disagree would not save together.
                better = np.bool_(metrics["rsum"] > best_rsum)
                if multihost_utils.broadcast_one_to_all(better):
                    best_rsum = metrics["rsum"]
                    best = {"rsum": best_rsum, "epoch": epoch + 1}
                    checkpoints.save_best(step, state.model, best)
                # After a stop in this validation the step's checkpoint is there already
                # and stays as it is; at worst the validation is repeated once more.
                validated = True
                _save_last(checkpoints, step, state, best_rsum, validated)
                recorder.restart_clock()
    except preemption.Preempted:
        if checkpoints.last_step() != step:
            unwritten = recorder.unwritten()
            _save_last(checkpoints, step, state, best_rsum, validated, unwritten)
        checkpoints.wait()
        logging.info("SIGTERM: stopped after step %d, saved; run it again", step)
        raise
    finally:
        writer.close()
    return schedule


def _save_last(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    best_rsum: float,
    validated: bool,
    unwritten: list | None = None,
) -> None:
    progress = {
        "best_rsum": best_rsum,
        "validated": validated,
        "unwritten": unwritten or [],
    }
    checkpoints.save_last(step, state.model, state.rest, progress)


def _scalars(prefix: str, metrics: dict) -> dict[str, float]:
    """{"i2t": {"r1": x}, "rsum": y} → {"prefix/i2t_r1": x, "prefix/rsum": y}."""
    flat = {f"{prefix}/rsum": metrics["rsum"]}
    for direction in ("i2t", "t2i"):
        for name, value in metrics[direction].items():
            flat[f"{prefix}/{direction}_{name}"] = value
    return flat
