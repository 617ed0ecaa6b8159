"""--mode=train: the whole training run, from top to bottom.

It sets up, restores or initialises, loops, and tests. What one step computes stands in
train_step.py.
"""

import contextlib
import itertools
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, local_folder
from vse_jax.base.progress import progress as progress_bar
from vse_jax.checkpoints.finetuning import (
    REPORT,
    make_report,
    read_report,
    retention_splits,
    write_report,
)
from vse_jax.checkpoints.folder import check_trainable, is_siglip, model_folder
from vse_jax.checkpoints.load import resolve
from vse_jax.checkpoints.pretrained import (
    begins_whole,
    load_start,
    resolve_start,
)
from vse_jax.checkpoints.resume import load_converted, resume_progress
from vse_jax.checkpoints.runs import (
    CONVERTED,
    Checkpoints,
    SaveClock,
    has_checkpoint,
)
from vse_jax.commands.embed import embed_best
from vse_jax.commands.evaluate import evaluate
from vse_jax.config import (
    CUTOFF_FILE,
    EVALUATION,
    RESUME,
    Config,
    check_same_run,
    save_config,
    with_fields,
    with_paths,
)
from vse_jax.data.collate import packing_devices, shapes_of
from vse_jax.data.dataset import Split, read_splits
from vse_jax.data.loader import TrainData, training_sampler
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary
from vse_jax.distributed import preemption
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import (
    batch_sharding,
    check_training_batch,
    make_mesh,
    put_batch,
)
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero
from vse_jax.evaluation.cutoff import write_cutoff
from vse_jax.evaluation.encode import Embedder, batch_sizes
from vse_jax.figures.curves import plot_curves
from vse_jax.metrics_logger import MetricsLogger
from vse_jax.optimizer import Schedule
from vse_jax.run_info import write_run_info
from vse_jax.token_features import (
    cached_token_features,
    check_frozen,
    features_folder,
)
from vse_jax.train_step import Trainer


def train(
    config: Config,
    workdir: AnyPath,
    accept_new_data: bool = False,
    model: AnyPath | None = None,
) -> None:
    """Trains in `workdir`, or goes on where it stopped, then tests the best epoch.

    Args:
        config: of the run.
        workdir: its folder.
        model: folder of the model that a new run starts from, in place of
            config.weights.
        accept_new_data: goes on where the data have changed since its last checkpoint.

    Raises:
        InputError: bad config or data, another config's workdir, changed data, NaN
            loss, full disk.
        Preempted: SIGTERM came, and what was reached is on disk.
    """
    # ---- Set up: read all that can be wrong before any time is spent on training -----

    check_trainable(workdir)
    if model is not None:
        config = with_fields(config, {"weights": str(model)})
    source = None
    if has_checkpoint(workdir):
        config = resolve(config, workdir)
    elif config.weights is not None:
        source = model_folder(config.weights, "config.weights")
        config = resolve_start(config, source)
    else:
        config = resolve(config, None)
    mesh = make_mesh(config)
    check_training_batch(config, mesh)
    names = (config.data.train_split, config.data.dev_split, config.eval.split)
    train_split, dev, test = read_splits(config, names)
    retained = retention_splits(config)
    splits = [train_split, dev, test, *retained]
    if retained and not has_checkpoint(workdir) and not begins_whole(config):
        raise InputError(
            "config.eval.retention: the run begins from no whole model that could "
            "forget: name one with --model, and keep its poolings"
        )
    caption_tokenizer(config)  # another model's vocabulary is refused
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}") from error

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep=config.checkpoint.keep)
        )
        programs = stack.enter_context(CompileCache())
        newest, converted = checkpoints.latest_step(), checkpoints.holds_converted()
        found = {"newest checkpoint": newest, "converted": converted}
        assert_equal_across_hosts("workdir", found)
        if newest is not None and (workdir / "config.json").exists():
            # Of converted weights the model is given, and the recipe is free.
            free = EVALUATION if converted else RESUME
            check_same_run(config, workdir / "config.json", free)
        progress, new_data = resume_progress(
            config, splits, checkpoints, accept_new_data
        )
        first = progress.first_step, progress.first_epoch
        schedule = Schedule(
            config,
            training_sampler(config, train_split).steps_per_epoch,
            len(train_split.captions) // config.batch_size + 1,
            *first,
        )
        trainer = Trainer.create(config, mesh, schedule)
        optimizer, steps = trainer.optimizer, schedule.total_steps
        if jax.process_index() == 0:
            copy_vocabulary(config, workdir)
            # Fit to be used from any folder.
            saved = with_paths(config, lambda path: str(Path(path).absolute()))
            save_config(saved, workdir / "config.json")
            write_run_info(
                config,
                mesh,
                trainer.abstract.params,
                optimizer.trainable_paths(),
                splits,
                (steps, schedule.steps_per_epoch),
                workdir,
            )
        batch_sizes(config, mesh.size)  # refused before anything is computed
        embedder = Embedder(
            config, trainer.graphdef, trainer.abstract_model, mesh, programs
        )
        for split in splits:
            embedder.tokens(split)  # a bad caption is found before hours of training

        # ---- Restore, convert or initialise ------------------------------------------
        #
        # 1. The folder has a checkpoint of this run: all is restored from it.
        # 2. It has converted weights (convert_torch_weights.py): they are trained on,
        #    after the epochs that the authors' program trained them for.
        # 3. The run starts from another's model: that is taken whole.
        # 4. The config names pretrained towers: the rest is initialised.
        # 5. Neither: all is initialised, from config.seed.

        if newest is not None and not converted:
            restored, rest = checkpoints.restore_latest(
                trainer.abstract_model, trainer.rest(trainer.abstract)
            )
            state = trainer.restored(restored, rest)
            logging.info("resumed from step %d", progress.step)
        else:
            state = trainer.initial_state()
            if converted:
                loaded, progress.best_epoch = load_converted(
                    checkpoints, trainer.abstract_model, state.params
                )
                progress.step = schedule.steps(progress.best_epoch)
                state = trainer.with_weights(state, loaded, progress.step)
            elif source is not None and not is_siglip(source):
                loaded = load_start(config, source, state.weights)
                state = trainer.with_weights(state, loaded)

        train_features = dev_features = None
        if config.text.cache_features:
            check_frozen(config, optimizer.trainable_paths())
            train_features, dev_features = (
                cached_token_features(
                    embedder, trainer.model(state), split, features_folder(workdir)
                )
                for split in (train_split, dev)
            )
        data = TrainData(
            config,
            train_split,
            embedder.tokens(train_split),
            train_features,
            pack=packing_devices(config, mesh.size),
            first=first,
        )
        logger = MetricsLogger(
            workdir,
            config.batch_size,
            first_step=progress.step + 1 if newest is None or converted else None,
            active=jax.process_index() == 0,
        )
        stack.callback(logger.close)
        validated = newest is not None and progress.validated == progress.step
        logger.truncate_after(progress.step, validated)
        # Of the best model so far; the run's end fits that of its last.
        on_process_zero(lambda: (workdir / CUTOFF_FILE).unlink(missing_ok=True))

        clock = SaveClock(config.checkpoint.every_minutes)

        def score(split: Split) -> dict[str, Any]:
            """Retrieval metrics of the model as it is now, which are logged, too."""
            features = dev_features if split is dev else None
            metrics = embedder.evaluate(trainer.model(state), split, features)
            logger.write_validation(progress.step, split.name, metrics)
            return metrics

        def validate() -> None:
            """Scores the model on dev, and notes when it is the best so far."""
            rsum = score(dev)["rsum"]
            progress.validated = progress.step
            if rsum > progress.best_rsum:
                progress.best_rsum, progress.best_step = rsum, progress.step
                progress.best_epoch = schedule.epoch(progress.step - 1) + 1

        def save() -> None:
            """Saves all that a resume needs."""
            logger.flush()
            since = time.monotonic()
            logger.flush_to_bucket()
            if checkpoints.latest_step() != progress.step:
                checkpoints.save(trainer.model(state), trainer.rest(state), progress)
            else:  # the run was stopped in the validation after this step
                checkpoints.wait()
                on_process_zero(lambda: checkpoints.update(progress))
            waited = time.monotonic() - since
            logger.write(progress.step, {"perf/save_wait": waited})
            clock.restart()

        # A whole model is scored before the first step: what training has to beat.
        if newest is None or new_data:
            on_process_zero(lambda: (workdir / REPORT).unlink(missing_ok=True))
        if newest is None and begins_whole(config):
            start = {split.name: score(split) for split in (dev, *retained)}
            report = make_report(config, {"start": start})
            on_process_zero(lambda: write_report(workdir, report))
        if converted:  # what they reach on this data is what training has to beat
            epoch = progress.best_epoch
            validate()
            progress.best_step, progress.best_epoch = CONVERTED, epoch
            save()
        if new_data:
            if progress.best_step is not None:
                best, _ = checkpoints.restore_best(trainer.abstract_model)
                rsum = embedder.evaluate(best, dev, dev_features)["rsum"]
                logging.info(
                    "the best model, of step %d, has rsum %.1f on the new %r (%.1f on "
                    "the old)",
                    progress.best_step,
                    rsum,
                    dev.name,
                    progress.best_rsum,
                )
                logger.write(progress.step, {f"eval/{dev.name}/best_rsum": rsum})
                progress.best_rsum = rsum
            on_process_zero(lambda: checkpoints.update(progress))

        # ---- The loop: what is due after `step` steps, then the next one -------------
        #
        # While a step is computed, the next one is queued with its batch, and the batch
        # after that is put on the device. A checkpoint holds the number of steps that
        # were trained; a resume makes its batches from there, also those ahead.

        begin, save_every = progress.step, config.checkpoint.every_steps
        profile = config.profile.split(":") if config.profile else (0, 0)
        trace_from, trace_to = map(int, profile)  # counted from 1
        trace = stack.enter_context(contextlib.ExitStack())
        rows = batch_sharding(mesh)
        # Against transfers to and from the device that nobody asked for.
        debug = jax.transfer_guard("disallow") if config.debug else None
        bad: InputError | None = None  # in the next step's batch
        try:
            with (
                debug or contextlib.nullcontext(),
                data.batches(
                    begin, jax.process_index(), jax.process_count()
                ) as batches,
            ):
                bar = progress_bar(
                    range(begin, steps),
                    "training",
                    total=steps,
                    unit="step",
                    initial=begin,
                )
                for step in itertools.count(begin):
                    epoch = schedule.epoch(step)
                    begins_epoch = step == schedule.steps(epoch)
                    if (begins_epoch or step == steps) and progress.validated < step:
                        logger.flush()
                        validate()
                        save()
                    elif step > begin and (
                        (save_every and step % save_every == 0) or clock.is_due(step)
                    ):
                        save()
                    if next(bar, None) is None:
                        break
                    if begins_epoch or step == begin:
                        preemption.check()  # compiling may take minutes
                        groups = optimizer.trainable_groups(epoch)
                        # All programs until the epoch's end, in the order of their use:
                        # they are compiled side by side while the first ones run.
                        for shapes in data.shapes(step, steps):
                            programs.start(*trainer.step_program(shapes, groups))
                        embedder.prepare(dev, dev_features)
                        logger.restart_clock()

                    preemption.check()
                    if max(trace_from, begin + 1) == step + 1 <= trace_to:
                        trace.callback(logging.info, "profile: %s", workdir / "profile")
                        folder = trace.enter_context(local_folder(workdir / "profile"))
                        trace.enter_context(jax.profiler.trace(folder))
                    if step == begin:
                        batch = put_batch(logger.timed_next(batches), rows)
                    if bad is not None:
                        raise bad
                    program = programs.get(
                        *trainer.step_program(shapes_of(batch), groups)
                    )
                    state, scalars = program(state, batch)
                    progress.step = step + 1
                    if progress.step < steps:
                        try:
                            batch = put_batch(logger.timed_next(batches), rows)
                        except InputError as error:  # what is due before comes first
                            bad = error
                    logger.add(progress.step, scalars)  # waits for the step before
                    if progress.step == trace_to:
                        jax.block_until_ready(scalars)
                        trace.close()
                    if progress.step % config.log_every == 0:
                        logger.flush_soon()
        except preemption.Preempted:
            save()
            checkpoints.wait()
            logging.info(
                "SIGTERM: stopped after step %d, saved; run it again", progress.step
            )
            raise
        trace.close()

        # ---- The test, of the best epoch ---------------------------------------------

        on_process_zero(lambda: plot_curves(workdir, schedule))
        checkpoints.wait()  # the best model is read from the disk
        evaluate(config, workdir, embedder=embedder, split=test)
        of_dev = embed_best(config, workdir, dev, embedder=embedder)
        on_process_zero(lambda: write_cutoff(workdir, dev, of_dev))
        if (before := on_process_zero(lambda: read_report(workdir))) is not None:
            start = before["models"]["start"]
            best, _ = checkpoints.restore_best(trainer.abstract_model)
            compared = [split for split in (dev, *retained) if split.name in start]
            tuned = {split.name: embedder.evaluate(best, split) for split in compared}
            report = make_report(config, {"start": start, "fine-tuned": tuned})
            on_process_zero(lambda: write_report(workdir, report))
