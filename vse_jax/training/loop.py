"""The training loop: draw, step; log, validate and save when it is time.

Its order is fixed: the checkpoint of a step is started before the next batch is drawn,
so that what is saved is exactly what has been trained on.
"""

import contextlib
from dataclasses import dataclass

import jax
from absl import logging

from vse_jax.base.progress import progress
from vse_jax.checkpoints.runs import Checkpoints, Reached
from vse_jax.data.dataset import Split
from vse_jax.data.loader import TrainData
from vse_jax.data.regions import NpyRows
from vse_jax.distributed import preemption
from vse_jax.distributed.mesh import batch_sharding, put_batch
from vse_jax.evaluation.encode import Embedder
from vse_jax.metrics_logger import MetricsLogger
from vse_jax.training.plan import Plan
from vse_jax.training.profiler import Profiler
from vse_jax.training.state import TrainState
from vse_jax.training.step import TrainStep


@dataclass(frozen=True)
class Run:
    """What a training run works with: all but what it has reached."""

    plan: Plan
    step: TrainStep
    data: TrainData
    evaluator: Embedder
    dev: Split
    dev_features: NpyRows | None
    checkpoints: Checkpoints
    logger: MetricsLogger
    profiler: Profiler

    def ends_epoch(self, step: int) -> bool:
        """Whether a validation is due after `step` steps."""
        schedule = self.plan.schedule
        return step > 0 and (
            step == schedule.steps(schedule.epoch(step)) or step == self.plan.steps
        )

    def save_due(self, step: int) -> bool:
        every = self.plan.config.checkpoint.every_steps
        return bool(every) and step % every == 0


def fit(run: Run, state: TrainState, reached: Reached) -> None:
    """Trains from `reached` to the end; checkpoints hold all that it leaves.

    Raises:
        InputError: NaN loss, full disk.
        Preempted: SIGTERM came, and what was reached is on disk.
    """
    plan, process = run.plan, (jax.process_index(), jax.process_count())
    placed = batch_sharding(plan.mesh)
    try:
        if run.ends_epoch(reached.step) and reached.validated < reached.step:
            finish_epoch(run, state, reached)  # the last start was stopped before it
        run.logger.restart_clock()  # a validation may have come before
        prepare_epoch(run, reached.step)
        with (
            _guard(plan.config.debug),
            run.data.batches(reached.step, *process) as batches,
        ):
            for step in progress(
                range(reached.step, plan.steps),
                "training",
                total=plan.steps,
                unit="step",
                initial=reached.step,
            ):
                preemption.check()
                run.profiler.before(step + 1)
                batch = put_batch(run.logger.timed_next(batches), placed)
                groups = plan.optimizer.open_groups(plan.schedule.epoch(step))
                state, scalars = run.step(state, batch, groups)
                reached.step = step + 1
                run.logger.add(reached.step, scalars)
                run.profiler.after(reached.step, scalars)
                if reached.step % plan.config.log_every == 0:
                    run.logger.flush_soon()
                if run.ends_epoch(reached.step):
                    finish_epoch(run, state, reached)
                elif run.save_due(reached.step):
                    save(run, state, reached)
    except preemption.Preempted:
        save(run, state, reached)
        run.checkpoints.wait()
        logging.info(
            "SIGTERM: stopped after step %d, saved; run it again", reached.step
        )
        raise


def _guard(debug: bool) -> contextlib.AbstractContextManager:
    """Against transfers to and from the device that nobody asked for."""
    return jax.transfer_guard("disallow") if debug else contextlib.nullcontext()


def prepare_epoch(run: Run, step: int) -> None:
    """Begins to compile all that the epoch of `step` runs, in the order of its use."""
    if step >= run.plan.steps:  # beyond: a resume may lower max_steps
        return
    preemption.check()  # compiling may take minutes
    epoch = run.plan.schedule.epoch(step)
    groups = run.plan.optimizer.open_groups(epoch)
    for shapes in run.data.shapes(epoch):
        run.step.prepare(shapes, groups)
    run.evaluator.prepare(run.dev, run.dev_features)


def finish_epoch(run: Run, state: TrainState, reached: Reached) -> None:
    """Validates on dev; saves what was reached, and the model when it is the best."""
    run.logger.flush()
    better = validate(run, state, reached)
    save(run, state, reached)
    if better:
        save_best(run, state, reached)
    prepare_epoch(run, reached.step)
    run.logger.restart_clock()


def validate(run: Run, state: TrainState, reached: Reached) -> bool:
    """Evaluates on dev; whether the model is better than the best so far."""
    metrics = run.evaluator.evaluate(state.model, run.dev, run.dev_features)
    run.logger.write_validation(reached.step, run.dev.name, metrics)
    reached.validated = reached.step
    if metrics["rsum"] <= reached.best_rsum:
        return False
    reached.best_rsum, reached.best_step = metrics["rsum"], reached.step
    return True


def save(run: Run, state: TrainState, reached: Reached) -> None:
    """Saves all that a resume needs, unless it is there.

    It is there when the run was stopped in the validation after this step: what the
    validation found is then saved with the next step, or found once more.
    """
    run.logger.flush()
    if run.checkpoints.last_step() != reached.step:
        run.checkpoints.save_last(state.model, state.rest, reached)


def save_best(run: Run, state: TrainState, reached: Reached) -> None:
    """Saves the model as the best one; `last` is on disk before.

    So whenever a run is killed, `best` is the one that `last` names, or the model of
    `last` itself (see `Checkpoints.best_is_missing`).
    """
    if run.checkpoints.best_step() != reached.step:
        epoch = run.plan.schedule.epoch(reached.step - 1) + 1
        about = {"rsum": reached.best_rsum, "epoch": epoch}
        about |= {"vocabulary": reached.data["vocabulary"]}
        run.checkpoints.save_best(reached.step, state.model, about)
