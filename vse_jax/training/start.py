"""How a run begins: its parts, and the state that it starts from.

Three ways: from nothing (with the config's pretrained weights), from where an earlier
start of the same run stopped, or from converted weights.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.runs import CONVERTED, Checkpoints, Reached
from vse_jax.config import EVALUATION_FREE, Config, check_same_run
from vse_jax.data.collate import use_packing
from vse_jax.data.dataset import Split
from vse_jax.data.digests import changes, data_digests
from vse_jax.data.loader import TrainData, training_sampler
from vse_jax.data.regions import NpyRows
from vse_jax.data.sampler import Sampler
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero
from vse_jax.evaluation.encode import Embedder, batch_sizes
from vse_jax.metrics_logger import MetricsLogger
from vse_jax.optimizer import Schedule
from vse_jax.token_features import cached_token_features, features_folder
from vse_jax.training.loop import Run, save, save_best, validate
from vse_jax.training.plan import Plan
from vse_jax.training.profiler import Profiler
from vse_jax.training.state import TrainState, initial_state
from vse_jax.training.step import TrainStep


class Splits(NamedTuple):
    train: Split
    dev: Split
    test: Split


def check_workdir(config: Config, workdir: Path, checkpoints: Checkpoints) -> None:
    """Raises InputError unless `workdir` is new, or holds this run or its weights."""
    steps = {"last": checkpoints.last_step(), "best": checkpoints.best_step()}
    assert_equal_across_hosts("workdir", steps)
    checkpoints.check_start()
    saved = workdir / "config.json"
    if steps["last"] is not None and saved.exists():
        check_same_run(config, saved)
    elif steps["best"] == CONVERTED and saved.exists():
        # The model is given, the recipe is free.
        check_same_run(config, saved, EVALUATION_FREE)


def reached_before(
    config: Config, splits: Splits, checkpoints: Checkpoints, accept_new_data: bool
) -> tuple[Reached, bool]:
    """(where the run stands, with the digests of its data; whether they are new).

    New data that are accepted begin with an epoch: one that had begun on the old ones
    is not finished. What was validated on those counts no more.

    Raises:
        InputError: the data changed since the last checkpoint, and that is not
            accepted; or it is damaged, or of another version.
    """
    # Process 0 decides for all: each may read a copy of the data of its own.
    data = on_process_zero(lambda: data_digests(config, splits))
    before = checkpoints.reached()
    if before is None:
        return Reached(data=data), False
    changed = changes(before.data, data)
    # Of a split that is not read now (config.eval.split may change) all stays known.
    data["splits"] = before.data["splits"] | data["splits"]
    if not changed:
        return dataclasses.replace(before, data=data), False
    what = f"changed since the checkpoint of step {before.step}: {'; '.join(changed)}"
    if not accept_new_data:
        raise InputError(
            f"{splits.train.root}: the data of this run {what}; --accept_new_data goes "
            "on with them and scores the best model again"
        )
    old = before.data["splits"][splits.train.name]
    sampler = Sampler(
        seed=config.seed,
        images=old["images"],
        captions_per_image=old["texts"] // old["images"],
        batch_size=config.batch_size,
        distinct_images=config.data.distinct_images,
        first_step=before.first_step,
        first_epoch=before.first_epoch,
    )
    epoch = sampler.position(before.step).epoch
    left = "" if epoch < config.num_epochs else "; raise --config.num_epochs to go on"
    logging.warning(
        "the data %s; accepted: %d of %d epochs are done%s",
        *(what, epoch, config.num_epochs, left),
    )
    reached = dataclasses.replace(
        before, validated=0, first_step=before.step, first_epoch=epoch, data=data
    )
    return reached, True


def train_schedule(config: Config, split: Split, reached: Reached) -> Schedule:
    """The schedule of training on a split.

    Raises:
        InputError: too little data for a batch.
    """
    return Schedule.from_config(
        config,
        training_sampler(config, split).steps_per_epoch,
        ramp_steps=len(split.captions) // config.batch_size + 1,
        first=(reached.first_step, reached.first_epoch),
    )


def start(
    plan: Plan,
    splits: Splits,
    workdir: Path,
    checkpoints: Checkpoints,
    programs: CompileCache,
    reached: Reached,
) -> tuple[Run, TrainState]:
    """The parts of the run, and the state that it goes on from.

    `reached` says how far that is; converted weights move it to their epochs' end.

    Raises:
        InputError: bad captions, weights or checkpoints.
    """
    config = plan.config
    batch_sizes(config, plan.mesh.size)  # refused before anything is computed
    model = plan.abstract.model
    evaluator = Embedder(config, plan.graphdef, model, plan.mesh, programs)
    for split in splits:
        evaluator.tokens(split)  # a bad caption is found before hours of training
    first_step = None  # the one before which nothing was updated
    if checkpoints.last_step() is not None:
        model, rest = checkpoints.restore_last(plan.abstract.model, plan.abstract.rest)
        state = TrainState(**model, **rest)
        logging.info("resumed from step %d", reached.step)
    else:
        state = initial_state(config, plan.optimizer, plan.abstract)
        if checkpoints.best_step() == CONVERTED:
            state, reached.step = converted(state, plan, checkpoints)
        first_step = reached.step + 1
    features, dev_features = _token_features(
        plan, evaluator, state, (splits.train, splits.dev), features_folder(workdir)
    )
    logger = MetricsLogger(
        workdir, config.batch_size, first_step, active=jax.process_index() == 0
    )
    logger.truncate_after(reached.step, reached.validated == reached.step)
    run = Run(
        plan=plan,
        step=TrainStep(plan, programs),
        data=TrainData(
            config,
            splits.train,
            evaluator.tokens(splits.train),
            features,
            pack=use_packing(config, plan.mesh.size),
            first=(reached.first_step, reached.first_epoch),
        ),
        evaluator=evaluator,
        dev=splits.dev,
        dev_features=dev_features,
        checkpoints=checkpoints,
        logger=logger,
        profiler=Profiler(config.profile, workdir / "profile"),
    )
    return run, state


def converted(
    state: TrainState, plan: Plan, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """The weights that convert_torch_weights.py left, and the steps of their epochs."""
    # The authors' losses have no parameters; those of another one start anew.
    loss = {k: v for k, v in state.params.items() if k == "loss"}
    target = plan.abstract.model
    towers = {k: v for k, v in target["params"].items() if k != "loss"}
    model, about = checkpoints.restore_best(target | {"params": towers})
    model["params"] |= loss
    logging.info("converted weights; goes on after epoch %d", about["epoch"])
    step = plan.schedule.steps(about["epoch"])
    return dataclasses.replace(state, **model, step=state.step + step), step


def begin(run: Run, state: TrainState, reached: Reached, new_data: bool) -> None:
    """What has to be done once before the loop: `best` is as `reached` says.

    What converted weights reach on this data is what training has to beat; a best model
    that a kill kept from being saved is saved now; on new data it is scored again.
    """
    if run.checkpoints.best_step() == CONVERTED and reached.best_step is None:
        validate(run, state, reached)
        reached.best_step = CONVERTED
        save(run, state, reached)
    elif run.checkpoints.best_is_missing(reached):
        save_best(run, state, reached)
    if new_data:
        _score_best_again(run, reached)


def _score_best_again(run: Run, reached: Reached) -> None:
    """Replaces the best rsum by that on today's dev split, on the disk, too."""
    run.checkpoints.wait()
    best = run.checkpoints.best_step()
    if best is not None:
        model, _ = run.checkpoints.restore_best(run.plan.abstract.model)
        metrics = run.evaluator.evaluate(model, run.dev, run.dev_features)
        logging.info(
            "the best model, of step %d, has rsum %.1f on the new %r (%.1f on the old)",
            *(best, metrics["rsum"], run.dev.name, reached.best_rsum),
        )
        rescored = {f"eval/{run.dev.name}/best_rsum": metrics["rsum"]}
        run.logger.write(reached.step, rescored)
        reached.best_rsum, reached.best_step = metrics["rsum"], best
    on_process_zero(lambda: run.checkpoints.restate(reached))


def _token_features(
    plan: Plan,
    evaluator: Embedder,
    state: TrainState,
    splits: tuple[Split, Split],
    cache: Path,
) -> tuple[NpyRows | None, NpyRows | None]:
    """Of the captions of each split, where config.text.cache_features asks."""
    if not plan.config.text.cache_features:
        return None, None
    encoder = f"text/{plan.config.text.kind}/"
    if not plan.optimizer.never_opens(encoder):
        raise InputError(
            "config.text.cache_features: needs a rule in optimizer.rules that never "
            f"opens ^{encoder}"
        )
    train, dev = (
        cached_token_features(evaluator, state.model, split, cache) for split in splits
    )
    return train, dev
