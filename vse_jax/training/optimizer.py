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
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.trees import Flat, flatten, merge


@dataclass(frozen=True)
class Schedule:
    """What changes with the step: epoch, learning rate, loss scale, kind of negatives.

    Steps count from 0 over the whole run; every method but `epoch` also takes traced
    steps. `ramp_steps` is the N of the loss ramp i / N (samples // batch + 1 in the
    original, which keeps the last partial batch).
    """

    steps_per_epoch: int
    ramp_steps: int
    learning_rate: float
    lr_update: int
    vse_mean_warmup_epochs: int
    ramp_epoch: int

    @classmethod
    def from_config(
        cls, config: ConfigDict, steps_per_epoch: int, ramp_steps: int
    ) -> "Schedule":
        return cls(
            steps_per_epoch=steps_per_epoch,
            ramp_steps=ramp_steps,
            learning_rate=config.optimizer.learning_rate,
            lr_update=config.optimizer.lr_update,
            vse_mean_warmup_epochs=config.loss.vse_mean_warmup_epochs,
            ramp_epoch=config.loss.ramp_epoch,
        )

    def epoch(self, step):
        return step // self.steps_per_epoch

    def rate(self, step):
        """Learning rate before the groups' factors: a tenth from `lr_update` on."""
        dropped = self.epoch(step) >= self.lr_update
        return self.learning_rate * jnp.where(dropped, 0.1, 1.0)

    def hardest(self, step):
        """True where only the hardest negatives count (VSE++ instead of VSE0)."""
        return self.epoch(step) >= self.vse_mean_warmup_epochs

    def loss_scale(self, step):
        """i / N in the ramp epoch, in which the CNN opens; 1 elsewhere."""
        ramp = (step % self.steps_per_epoch) / self.ramp_steps
        return jnp.where(self.epoch(step) == self.ramp_epoch, ramp, 1.0)


class Optimizer:
    """Groups of parameters by ordered rules (regex, learning-rate factor, epoch).

    Args:
        config: `config.optimizer`.
        params: parameter tree; shapes are enough.

    Raises:
        InputError: a parameter that no rule matches, or an unknown optimizer name.
    """

    def __init__(self, config: ConfigDict, params):
        self._config = config
        self._rules = [tuple(rule) for rule in config.rules]
        self._group = {path: self._first_match(path) for path in flatten(params)}

    def _first_match(self, path: str) -> int:
        for index, (pattern, _, _) in enumerate(self._rules):
            if re.search(pattern, path):
                return index
        raise InputError(f"config.optimizer.rules: no rule matches parameter {path}")

    def _members(self, flat: Flat, group: int) -> Flat:
        return {path: x for path, x in flat.items() if self._group[path] == group}

    def _transformation(self) -> optax.GradientTransformation:
        """Direction of descent of one group, before the learning rate."""
        c = self._config
        decay = optax.add_decayed_weights(
            c.weight_decay,
            mask=lambda tree: {p: bool(re.search(c.weight_decay_on, p)) for p in tree},
        )
        if c.name == "adamw":
            return optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8), decay)
        if c.name == "sgd":  # PyTorch's SGD adds the decay before the momentum
            return optax.chain(decay, optax.trace(0.9, nesterov=c.nesterov))
        raise InputError(f"config.optimizer.name: '{c.name}' is not adamw or sgd")

    def init(self, params) -> dict[str, optax.OptState]:
        """State of each group that ever opens, by the group's index as a string."""
        flat = flatten(params)
        return {
            str(group): self._transformation().init(self._members(flat, group))
            for group, (_, factor, epoch) in enumerate(self._rules)
            if epoch >= 0 and factor > 0 and self._members(flat, group)
        }

    def open_groups(self, epoch: int) -> tuple[int, ...]:
        """Groups that train in `epoch`: a static argument of the step, so that XLA
        never computes a frozen group's gradient."""
        return tuple(
            group
            for group, (_, factor, opens) in enumerate(self._rules)
            if 0 <= opens <= epoch and factor > 0
        )

    def never_opens(self, prefix: str) -> bool:
        """Whether no parameter below `prefix` is ever trained."""
        rules = {self._rules[g] for p, g in self._group.items() if p.startswith(prefix)}
        return all(opens < 0 or factor == 0 for _, factor, opens in rules)

    def select(self, params, groups: tuple[int, ...]) -> Flat:
        """The leaves of `params` that belong to `groups`."""
        flat = flatten(params)
        return {path: x for path, x in flat.items() if self._group[path] in groups}

    def update(self, grads: Flat, state, params, rate, groups: tuple[int, ...]):
        """One step over the open groups.

        Args:
            grads: gradients of exactly the leaves in `groups`.
            state: what `init` returned, or an earlier update.
            params: the whole parameter tree.
            rate: scalar, learning rate before the groups' factors.
            groups: open groups.

        Returns:
            New params, new state, and the gradients' global norm before clipping.
        """
        norm = optax.tree.norm(grads)
        # PyTorch's clip_grad_norm_, with its 1e-6.
        clip = self._config.clip
        scale = jnp.minimum(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        clipped = {path: g * scale for path, g in grads.items()}
        flat = self.select(params, groups)
        state = dict(state)
        new: Flat = {}
        for group in groups:
            members = self._members(flat, group)
            if not members:
                continue
            direction, state[str(group)] = self._transformation().update(
                self._members(clipped, group), state[str(group)], members
            )
            factor = self._rules[group][1]
            for path, x in members.items():
                new[path] = x - rate * factor * direction[path]
        return merge(params, new), state, norm
