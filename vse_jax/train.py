"""--mode=train: the whole training run, from top to bottom.

Read `train` first: it sets up, restores or initialises, loops, and tests. What stands
above it is what a step reads and writes (`TrainState`), what it is made of (`Trainer`),
and the step itself (`train_step`).
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx, struct
from jax.sharding import Mesh
from jax.stages import Lowered

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, local_folder
from vse_jax.base.progress import progress as progress_bar
from vse_jax.base.trees import Flat, flatten, merge
from vse_jax.checkpoints.finetuning import (
    REPORT,
    make_report,
    read_report,
    retention_splits,
    warn_if_worse,
    write_report,
)
from vse_jax.checkpoints.folder import check_trainable, is_siglip, model_folder
from vse_jax.checkpoints.load import resolve
from vse_jax.checkpoints.pretrained import (
    begins_whole,
    load_pretrained,
    load_start,
    resolve_start,
)
from vse_jax.checkpoints.runs import (
    CONVERTED,
    Checkpoints,
    SaveClock,
    TrainProgress,
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
from vse_jax.data.collate import Shapes, described, packing_devices, shapes_of
from vse_jax.data.dataset import Split, read_splits
from vse_jax.data.digests import changes, data_digests
from vse_jax.data.loader import TrainData, training_sampler
from vse_jax.data.sampler import Epochs
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary
from vse_jax.distributed import preemption
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import (
    abstract_batch,
    batch_sharding,
    check_training_batch,
    make_mesh,
    put_batch,
    put_sharded,
    replicated,
    state_sharding,
    with_sharding,
)
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero
from vse_jax.evaluation.cutoff import write_cutoff
from vse_jax.evaluation.encode import Embedder, batch_sizes
from vse_jax.figures.curves import plot_curves
from vse_jax.lora import adapter_shapes, init_adapters, merged
from vse_jax.losses import batch_loss
from vse_jax.metrics_logger import MetricsLogger
from vse_jax.microbatches import loss_and_gradients
from vse_jax.models.build import abstract_model, build_model, merge_model, split_model
from vse_jax.ops import place
from vse_jax.optimizer import Optimizer, Schedule
from vse_jax.run_info import write_run_info
from vse_jax.token_features import cached_token_features, features_folder

_ADAPTERS = "params/lora/"

# ---- What a step reads and writes, and what it is made of ----------------------------


@struct.dataclass
class TrainState:
    """Everything a step reads and writes: arrays, or their shapes.

    Attributes:
        step: finished steps, int32 scalar.
        params, batch_stats: nested dicts of the model, and of its adapters (lora.py).
        opt_state: by parameter group.
        rng: typed key; a step folds its number in.
        average: moving averages of what of `weights` is trained, by their paths;
            empty without config.optimizer.ema.
    """

    step: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]
    rng: Any
    average: Flat = struct.field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Any]:
        """What a step computes with, and changes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@dataclass(frozen=True, eq=False)
class Trainer:
    """What a training step is made of: all that no step changes.

    Attributes:
        config: of the run.
        mesh: axes (data, fsdp), over all devices of all processes.
        schedule: epochs, learning rate and loss scale by step.
        graphdef: the model without its arrays, which are in the `TrainState`.
        loss_graphdef: the loss without its arrays, params["loss"] of the state.
        optimizer: parameter groups, and how each is updated.
        abstract: shapes and shardings of the `TrainState`.
        abstract_model: those of `model`.
    """

    config: Config
    mesh: Mesh
    schedule: Schedule
    graphdef: nnx.GraphDef
    loss_graphdef: nnx.GraphDef
    optimizer: Optimizer
    abstract: TrainState
    abstract_model: dict[str, Any]

    @classmethod
    def create(cls, config: Config, mesh: Mesh, schedule: Schedule) -> "Trainer":
        """The trainer of a config.

        Raises:
            InputError: a parameter that no rule of the optimizer matches, or a regex
                for adapters that matches nothing.
        """
        graphdef, model = abstract_model(config)
        loss_graphdef, _ = nnx.split(merge_model(graphdef, model).loss)
        params = model["params"]
        params = params | adapter_shapes(params, config.optimizer.lora)
        optimizer = Optimizer(config.optimizer, params)
        averaged: Flat = {}
        if config.optimizer.ema is not None:
            trained = {f"params/{path}" for path in optimizer.trainable_paths()}
            averaged = {
                path: leaf
                for path, leaf in flatten(model | {"params": params}).items()
                if path in trained or path.startswith("batch_stats/")
            }
        shapes = TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32),
            params=params,
            batch_stats=model["batch_stats"],
            opt_state=jax.eval_shape(optimizer.init, params),
            rng=jax.eval_shape(lambda: jax.random.key(0)),
            average=averaged,
        )
        return cls(
            config,
            mesh,
            schedule,
            graphdef,
            loss_graphdef,
            optimizer,
            abstract=with_sharding(shapes, state_sharding(mesh, shapes)),
            abstract_model=with_sharding(model, state_sharding(mesh, model)),
        )

    def initial_state(self) -> TrainState:
        """The state before the first step: random weights from config.seed, and the
        pretrained ones that config.{image,text}.weights name; adapters change nothing.

        Raises:
            InputError: pretrained weights that are not there, or of another size.
        """
        init_key, run_key = jax.random.split(jax.random.key(self.config.seed))
        rngs = nnx.Rngs(params=init_key)
        _, model = split_model(build_model(self.config, rngs=rngs))
        model = load_pretrained(self.config, put_sharded(model, self.abstract_model))
        if (shapes := self.abstract.params.get("lora")) is not None:
            adapters = put_sharded(init_adapters(shapes, rngs), shapes)
            model["params"] = model["params"] | {"lora": adapters}

        def rest():
            zeros = jax.tree.map(jnp.zeros_like, self.abstract.params)
            step = jnp.zeros((), jnp.int32)
            return {
                "step": step,
                "opt_state": self.optimizer.init(zeros),
                "rng": run_key,
            }

        shapes = {name: getattr(self.abstract, name) for name in jax.eval_shape(rest)}
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        made = jax.jit(rest, out_shardings=shardings)()
        return TrainState(**model, **made, average=self.initial_average(model))

    def initial_average(self, model: dict[str, Any]) -> Flat:
        """A copy of what is averaged, since a step donates both."""
        flat = flatten(model)
        return {path: jnp.copy(flat[path]) for path in self.abstract.average}

    # A checkpoint holds a state in two parts, so that everything that only uses a model
    # reads an ordinary one.

    def model(self, state: TrainState) -> dict[str, Any]:
        """What is validated, saved as the best and shared: averaged, no adapters."""
        weights = merge(state.weights, state.average)
        if "lora" in state.params:
            weights["params"] = self._merged(weights["params"])
        return weights

    @functools.cached_property
    def _merged(self):
        """`merged`, all on the devices."""
        return jax.jit(
            functools.partial(merged, config=self.config.optimizer.lora),
            out_shardings=jax.tree.map(
                lambda x: x.sharding, self.abstract_model["params"]
            ),
        )

    def rest(self, state: TrainState) -> dict[str, Any]:
        """What a resume needs besides `model`: above all, of which weights that is."""
        adapted = {f"params/{path}" for path in state.params.get("lora", {})}
        weights = {
            path: x
            for path, x in flatten(state.weights).items()
            if path in state.average or path in adapted or path.startswith(_ADAPTERS)
        }
        average = {p: x for p, x in state.average.items() if p.startswith(_ADAPTERS)}
        rest = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        found = {"weights": weights, "average": average}
        return rest | {name: part for name, part in found.items() if part}

    def restored(self, model: dict[str, Any], rest: dict[str, Any]) -> TrainState:
        """Inverse of `model` and `rest`."""
        flat = flatten(model)
        average = {path: flat[path] for path in self.abstract.average if path in flat}
        rest = {"weights": {}, "average": {}} | rest
        weights = merge(self.abstract.weights, flat | rest.pop("weights"))
        average |= rest.pop("average")
        return TrainState(**weights, **rest, average=average)

    @functools.cached_property
    def step(self):
        """`train_step` over the mesh: step(state, batch, groups); donates the state."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        return jax.jit(
            functools.partial(train_step, trainer=self),
            static_argnums=2,
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(self.mesh)),
            out_shardings=(shardings, replicated(self.mesh)),
        )

    def lower_step(self, shapes: Shapes, groups: tuple[str, ...]) -> Lowered:
        """`step` for global batches of these shapes."""
        return self.step.lower(self.abstract, abstract_batch(shapes), groups)

    def step_program(self, shapes: Shapes, groups: tuple[str, ...]):
        """What `CompileCache` asks for: (its name, key, how to lower it)."""
        lower = functools.partial(self.lower_step, shapes, groups)
        key = ("train_step", groups, frozenset(shapes.items()))
        return f"train_step, {described(shapes)}", key, lower


# ---- The step ------------------------------------------------------------------------


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    groups: tuple[str, ...],
    trainer: Trainer,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the global batch.

    Args:
        state: before the step.
        batch: see `vse_jax.data.collate`; the first dimension is the global batch.
        groups: parameter groups that are trained in this epoch; static.
        trainer: what does not change during a run; static.

    Returns:
        The next state and scalars: loss (the ramp scales what is descended, not what is
        reported), grad_norm (before clipping), lr.
    """
    config, mesh, schedule = trainer.config, trainer.mesh, trainer.schedule
    # Gradients are taken in these alone, {path: array}; all else is a constant.
    trainable = trainer.optimizer.select(state.params, groups)
    step_key = jax.random.fold_in(state.rng, state.step)

    def embed(trainable, batch_stats, batch, number):
        # The first microbatch draws what a whole batch would.
        key = jnp.where(number == 0, step_key, jax.random.fold_in(step_key, number))
        dropout, size = jax.random.split(key)
        params = merged(merge(state.params, trainable), config.optimizer.lora)
        model = merge_model(
            trainer.graphdef, {"params": params, "batch_stats": batch_stats}
        )
        rngs = nnx.Rngs(dropout=dropout, size=size)
        embeddings = place(model, mesh)(batch, train=True, rngs=rngs)
        return embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def loss_of(trainable, images, captions):
        params = merge(state.params, trainable).get("loss", {})
        loss = nnx.merge(trainer.loss_graphdef, params)
        ids = batch["image_ids"] if config.loss.mask_same_image else None
        return batch_loss(loss, images, captions, schedule.epoch(state.step), ids, mesh)

    loss, grads, batch_stats = loss_and_gradients(
        embed, loss_of, trainable, state.batch_stats, batch, config.microbatches
    )
    scale = schedule.loss_scale(state.step)
    if mesh.size > 1:
        # Each device updates its shard of the parameters. A gradient is complete before
        # (see `place`), or the sharding would spread into the loops that sum it up;
        # TPU's compiler makes one reduce-scatter of the sum and this.
        grads = jax.lax.with_sharding_constraint(grads, state_sharding(mesh, grads))
    grads = jax.tree.map(lambda g: scale * g, grads)
    rate = schedule.rate(state.step)
    trainable, opt_state, grad_norm = trainer.optimizer.update(
        grads, state.opt_state, trainable, rate, groups
    )
    new = TrainState(
        step=state.step + 1,
        params=merge(state.params, trainable),
        batch_stats=batch_stats,
        opt_state=opt_state,
        rng=state.rng,
    )
    if config.optimizer.ema is not None:
        # The first steps, from which a run moves away fast, count less (TensorFlow's).
        decay = jnp.minimum(config.optimizer.ema, (1 + new.step) / (10 + new.step))
        flat = flatten(new.weights)
        average = {
            path: x + (1 - decay) * (flat[path] - x)  # exactly x where nothing changes
            for path, x in state.average.items()
        }
        new = dataclasses.replace(new, average=average)
    return new, {"loss": loss, "grad_norm": grad_norm, "lr": rate}


# ---- What a run goes on from ---------------------------------------------------------


def resume_progress(
    config: Config,
    splits: Sequence[Split],
    checkpoints: Checkpoints,
    accept_new_data: bool,
) -> tuple[TrainProgress, bool]:
    """(where the run stands, with the digests of its data; whether they are new).

    New data that are accepted begin with an epoch: one that had begun on the old ones
    is not finished. What was validated on those counts no more.

    Args:
        config: of the run.
        splits: to train on, to validate on and to test on.
        checkpoints: of the run.
        accept_new_data: goes on where the data have changed since the last one.

    Raises:
        InputError: the data changed since the last checkpoint, and that is not
            accepted; or it is damaged, or of another version.
    """
    # Process 0 decides for all: each may read a copy of the data of its own.
    data = on_process_zero(lambda: data_digests(config, splits))
    before = checkpoints.progress()
    if before is None or checkpoints.holds_converted():
        return TrainProgress(data=data), False
    changed = changes(before.data, data)
    # Of a split that is not read now (config.eval.split may change) all stays known.
    data["splits"] = before.data["splits"] | data["splits"]
    if not changed:
        return dataclasses.replace(before, data=data), False
    what = f"changed since the checkpoint of step {before.step}: {'; '.join(changed)}"
    if not accept_new_data:
        raise InputError(
            f"{splits[0].root}: the data of this run {what}; --accept_new_data goes "
            "on with them and scores the best model again"
        )
    old = before.data["splits"][splits[0].name]
    epochs = Epochs(
        captions=old["texts"],
        passes=old["most_texts"] if config.data.distinct_images else 1,
        batch_size=config.batch_size,
        first_step=before.first_step,
        first_epoch=before.first_epoch,
    )
    epoch = epochs.position(before.step).epoch
    left = "" if epoch < config.num_epochs else "; raise --config.num_epochs to go on"
    logging.warning(
        "the data %s; accepted: %d of %d epochs are done%s",
        what,
        epoch,
        config.num_epochs,
        left,
    )
    progress = dataclasses.replace(
        before, validated=0, first_step=before.step, first_epoch=epoch, data=data
    )
    return progress, True


def convert(
    state: TrainState, trainer: Trainer, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """(the state with converted weights, the epochs that they were trained for)."""
    # The authors' losses have no parameters; those of another one are initialised.
    new = {k: v for k, v in state.params.items() if k in ("loss", "lora")}
    target = trainer.abstract_model
    towers = {k: v for k, v in target["params"].items() if k != "loss"}
    model, about = checkpoints.restore_best(target | {"params": towers})
    model["params"] |= new
    epochs = about.best_epoch
    logging.info("converted weights; goes on after epoch %d", epochs)
    step = state.step + trainer.schedule.steps(epochs)
    average = trainer.initial_average(model)
    return dataclasses.replace(state, **model, step=step, average=average), epochs


# ---- The run -------------------------------------------------------------------------


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
        schedule = Schedule.from_config(
            config,
            training_sampler(config, train_split).steps_per_epoch,
            ramp_steps=len(train_split.captions) // config.batch_size + 1,
            first=first,
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
                state, progress.best_epoch = convert(state, trainer, checkpoints)
                progress.step = schedule.steps(progress.best_epoch)
            elif source is not None and not is_siglip(source):
                loaded = load_start(config, source, state.weights)
                average = trainer.initial_average(loaded)
                state = dataclasses.replace(state, **loaded, average=average)

        train_features = dev_features = None
        if config.text.cache_features:
            encoder = f"text/{config.text.kind}/"
            adapters = f"lora/{encoder}"
            if any(
                p.startswith((encoder, adapters)) for p in optimizer.trainable_paths()
            ):
                raise InputError(
                    "config.text.cache_features: needs a rule in optimizer.rules that "
                    f"never unfreezes ^{encoder}"
                )
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

        # A whole model is scored before the first step: what training has to beat.
        if newest is None or new_data:
            on_process_zero(lambda: (workdir / REPORT).unlink(missing_ok=True))
        if newest is None and begins_whole(config):
            untouched, before = trainer.model(state), {}
            for split in (dev, *retained):
                features = dev_features if split is dev else None
                before[split.name] = embedder.evaluate(untouched, split, features)
                logger.write_validation(progress.step, split.name, before[split.name])
            report = make_report(config, {"start": before})
            on_process_zero(lambda: write_report(workdir, report))

        clock = SaveClock(config.checkpoint.every_minutes, progress.step)

        def validate() -> None:
            """Scores the model on dev, and notes when it is the best so far."""
            metrics = embedder.evaluate(trainer.model(state), dev, dev_features)
            logger.write_validation(progress.step, dev.name, metrics)
            progress.validated = progress.step
            if metrics["rsum"] > progress.best_rsum:
                progress.best_rsum = metrics["rsum"]
                progress.best_step = progress.step
                progress.best_epoch = schedule.epoch(progress.step - 1) + 1

        def save() -> None:
            """Saves all that a resume needs."""
            logger.flush()
            begin = time.monotonic()
            logger.flush_to_bucket()
            if checkpoints.latest_step() != progress.step:
                checkpoints.save(trainer.model(state), trainer.rest(state), progress)
            else:  # the run was stopped in the validation after this step
                checkpoints.wait()
                on_process_zero(lambda: checkpoints.update(progress))
            waited = time.monotonic() - begin
            logger.write(progress.step, {"perf/save_wait": waited})
            clock.saved(progress.step)

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

        start, save_every = progress.step, config.checkpoint.every_steps
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
                    start, jax.process_index(), jax.process_count()
                ) as batches,
            ):
                bar = progress_bar(
                    range(start, steps),
                    "training",
                    total=steps,
                    unit="step",
                    initial=start,
                )
                for step in itertools.count(start):
                    epoch = schedule.epoch(step)
                    begins_epoch = step == schedule.steps(epoch)
                    if (begins_epoch or step == steps) and progress.validated < step:
                        logger.flush()
                        validate()
                        save()
                    elif step > start and (
                        (save_every and step % save_every == 0) or clock.is_due(step)
                    ):
                        save()
                    if next(bar, None) is None:
                        break
                    if begins_epoch or step == start:
                        preemption.check()  # compiling may take minutes
                        groups = optimizer.trainable_groups(epoch)
                        # All programs until the epoch's end, in the order of their use:
                        # they are compiled side by side while the first ones run.
                        for shapes in data.shapes(step, steps):
                            programs.start(*trainer.step_program(shapes, groups))
                        embedder.prepare(dev, dev_features)
                        logger.restart_clock()

                    preemption.check()
                    if max(trace_from, start + 1) == step + 1 <= trace_to:
                        trace.callback(logging.info, "profile: %s", workdir / "profile")
                        folder = trace.enter_context(local_folder(workdir / "profile"))
                        trace.enter_context(jax.profiler.trace(folder))
                    if step == start:
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
        if (found := on_process_zero(lambda: read_report(workdir))) is not None:
            before = found["models"]["start"]
            best, _ = checkpoints.restore_best(trainer.abstract_model)
            compared = [split for split in (dev, *retained) if split.name in before]
            after = {split.name: embedder.evaluate(best, split) for split in compared}
            report = make_report(config, {"start": before, "fine-tuned": after})
            on_process_zero(lambda: write_report(workdir, report))
            warn_if_worse(before, after)
