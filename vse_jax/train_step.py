"""One training step: what it reads and writes, what it is made of, and the step itself.

`TrainState` is all that changes, `Trainer` all that does not; `train_step` computes the
next state from a batch. The loop around it is train.py.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh
from jax.stages import Lowered

from vse_jax.base.trees import Flat, flatten, merge
from vse_jax.checkpoints.pretrained import load_pretrained
from vse_jax.config import Config
from vse_jax.data.collate import Shapes, described
from vse_jax.distributed.mesh import (
    abstract_batch,
    batch_sharding,
    put_sharded,
    replicated,
    state_sharding,
    with_sharding,
)
from vse_jax.lora import adapter_shapes, init_adapters, merged
from vse_jax.losses import batch_loss
from vse_jax.microbatches import loss_and_gradients
from vse_jax.models.build import abstract_model, build_model, merge_model, split_model
from vse_jax.models.vse import prefix
from vse_jax.ops import place
from vse_jax.optimizer import Optimizer, Schedule

_ADAPTERS = "params/lora/"


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
        return TrainState(**model, **made, average=self._initial_average(model))

    def with_weights(
        self, state: TrainState, model: dict[str, Any], step: int = 0
    ) -> TrainState:
        """An initial state that goes on with the weights `model` after `step` steps."""
        average = self._initial_average(model)
        step = state.step + step
        return dataclasses.replace(state, **model, step=step, average=average)

    def _initial_average(self, model: dict[str, Any]) -> Flat:
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
        epoch = schedule.epoch(state.step)
        whole = batch_loss(loss, images, captions, epoch, ids, mesh)
        if not (prefixes := config.loss.matryoshka):
            return whole
        # Matryoshka representation learning (Kusupati et al., 2022, Eq. 1), all
        # prefixes with the same weight; as a mean it keeps the learning rate's scale.
        sides = (images, config.image.normalise), (captions, config.text.normalise)
        for dims in prefixes:
            parts = (prefix(x, dims, normalize) for x, normalize in sides)
            whole += batch_loss(loss, *parts, epoch, ids, mesh)
        return whole / (1 + len(prefixes))

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
