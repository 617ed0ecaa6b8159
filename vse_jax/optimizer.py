"""Schedules and the optimizer: parameter groups, freezing, clipping, AdamW or SGD.

What the published recipes need and optax has no single transformation for: a group
that opens in epoch e is left alone before (no update, no weight decay, no moments) and
its Adam step count starts when it opens, while every group follows the one global
learning-rate schedule (VSE∞, supplement 1; PyTorch's parameter groups).
"""

import re
from dataclasses import dataclass

import jax.numpy as jnp
import optax

from vse_jax.base.errors import InputError
from vse_jax.base.trees import Flat, flatten, merge
from vse_jax.config import Config


@dataclass(frozen=True)
class Schedule:
    """What changes with the step: epoch, learning rate, loss scale.

    Steps count from 0 over the whole run; every method but `epoch` also takes traced
    steps. `ramp_steps` is the N of the loss ramp i / N (samples // batch + 1 in the
    original, which keeps the last partial batch). `hardest_from` is the first epoch of
    the triplet loss's hardest negatives, which losses.py counts itself.
    `first_step` and `first_epoch`: steps and epochs that were made with other data.
    """

    steps_per_epoch: int
    ramp_steps: int
    learning_rate: float
    lr_update: int
    hardest_from: int | None
    ramp_epoch: int
    first_step: int = 0
    first_epoch: int = 0

    @classmethod
    def from_config(
        cls,
        config: Config,
        steps_per_epoch: int,
        ramp_steps: int,
        first: tuple[int, int] = (0, 0),
    ) -> "Schedule":
        hardest = config.loss.vse_mean_warmup_epochs
        return cls(
            steps_per_epoch=steps_per_epoch,
            ramp_steps=ramp_steps,
            learning_rate=config.optimizer.learning_rate,
            lr_update=config.optimizer.lr_update,
            hardest_from=hardest if config.loss.name == "triplet" else None,
            ramp_epoch=config.loss.ramp_epoch,
            first_step=first[0],
            first_epoch=first[1],
        )

    def epoch(self, step):
        return self.first_epoch + (step - self.first_step) // self.steps_per_epoch

    def steps(self, epochs: int) -> int:
        """How many there are in the first `epochs` epochs."""
        return self.first_step + (epochs - self.first_epoch) * self.steps_per_epoch

    def rate(self, step):
        """Learning rate before the groups' factors: a tenth from `lr_update` on."""
        dropped = self.epoch(step) >= self.lr_update
        return self.learning_rate * jnp.where(dropped, 0.1, 1.0)

    def loss_scale(self, step):
        """i / N in the ramp epoch, in which the CNN opens; 1 elsewhere."""
        ramp = (step - self.first_step) % self.steps_per_epoch / self.ramp_steps
        return jnp.where(self.epoch(step) == self.ramp_epoch, ramp, 1.0)


@dataclass(frozen=True)
class Group:
    """The parameters that one rule of config.optimizer.rules governs.

    key: names its state in checkpoints. factor: of the learning rate. opens: the first
    epoch that trains it; −1: none does. paths: of its parameters.
    """

    key: str
    factor: float
    opens: int
    paths: tuple[str, ...]

    @property
    def ever_trains(self) -> bool:
        return self.opens >= 0 and self.factor > 0 and bool(self.paths)

    def of(self, flat: Flat) -> Flat:
        """Its leaves among `flat`."""
        return {path: flat[path] for path in self.paths}


class Optimizer:
    """Groups of parameters by ordered rules (regex, learning-rate factor, epoch).

    Args:
        config: `config.optimizer`.
        params: parameter tree; shapes are enough.

    Raises:
        InputError: a parameter that no rule matches.
    """

    def __init__(self, config: Config, params):
        self._config = config
        members: list[list[str]] = [[] for _ in config.rules]
        for path in flatten(params):
            members[self._first_match(path)].append(path)
        self.groups = {
            str(number): Group(str(number), factor, opens, tuple(paths))
            for number, ((_, factor, opens), paths) in enumerate(
                zip(config.rules, members, strict=True)
            )
        }

    def _first_match(self, path: str) -> int:
        for number, (pattern, _, _) in enumerate(self._config.rules):
            if re.search(pattern, path):
                return number
        raise InputError(f"config.optimizer.rules: no rule matches parameter {path}")

    def _transformation(self) -> optax.GradientTransformation:
        """Direction of descent of one group, before the learning rate."""
        c = self._config
        decay = optax.add_decayed_weights(
            c.weight_decay,
            mask=lambda tree: {p: bool(re.search(c.weight_decay_on, p)) for p in tree},
        )
        if c.name == "adamw":
            return optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8), decay)
        # PyTorch's SGD adds the decay before the momentum.
        return optax.chain(decay, optax.trace(0.9, nesterov=c.nesterov))

    def init(self, params) -> dict[str, optax.OptState]:
        """State of each group that ever trains, by its key."""
        flat = flatten(params)
        return {
            key: self._transformation().init(group.of(flat))
            for key, group in self.groups.items()
            if group.ever_trains
        }

    def open_groups(self, epoch: int) -> tuple[str, ...]:
        """Keys of the groups that train in `epoch`: a static argument of the step, so
        that XLA never computes a frozen group's gradient."""
        return tuple(
            key
            for key, group in self.groups.items()
            if group.ever_trains and group.opens <= epoch
        )

    def trained_paths(self) -> frozenset[str]:
        """The parameters that are trained, sooner or later."""
        groups = self.groups.values()
        return frozenset(
            p for group in groups if group.ever_trains for p in group.paths
        )

    def never_opens(self, prefix: str) -> bool:
        """Whether no parameter below `prefix` is ever trained."""
        return not any(path.startswith(prefix) for path in self.trained_paths())

    def select(self, params, keys: tuple[str, ...]) -> Flat:
        """The leaves of `params` that belong to the groups with these keys."""
        flat = flatten(params)
        wanted = {path for key in keys for path in self.groups[key].paths}
        return {path: x for path, x in flat.items() if path in wanted}

    def update(self, grads: Flat, state, params, rate, keys: tuple[str, ...]):
        """One step over the open groups.

        Args:
            grads: gradients of exactly the leaves in these groups.
            state: what `init` returned, or an earlier update.
            params: the whole parameter tree.
            rate: scalar, learning rate before the groups' factors.
            keys: of the open groups.

        Returns:
            New params, new state, and the gradients' global norm before clipping.
        """
        norm = optax.tree.norm(grads)
        # PyTorch's clip_grad_norm_, with its 1e-6.
        clip = self._config.clip
        scale = jnp.minimum(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        clipped = {path: g * scale for path, g in grads.items()}
        flat = flatten(params)
        state = dict(state)
        new: Flat = {}
        for group in (self.groups[key] for key in keys):
            members = group.of(flat)
            direction, state[group.key] = self._transformation().update(
                group.of(clipped), state[group.key], members
            )
            for path, x in members.items():
                new[path] = x - rate * group.factor * direction[path]
        return merge(params, new), state, norm
