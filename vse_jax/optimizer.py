"""Schedules and the optimizer: parameter groups, freezing, clipping, AdamW or SGD.

A group is left alone before its `unfreeze_epoch` (no update, no weight decay, no
moments) and its Adam step count starts there, while every group follows the one global
learning-rate schedule (VSE∞, supplement 1; PyTorch's parameter groups).

optax lacks a group that is frozen when the program is compiled: `conditionally_mask`
decides in the program, by counting its own updates, so the gradients of all that is
frozen would be computed, and a run could not change the length of its epochs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import optax

from vse_jax.base.errors import InputError
from vse_jax.base.trees import Flat, flatten
from vse_jax.config import Config, OptimizerConfig


@dataclass(frozen=True)
class Schedule:
    """What changes with the step: epoch, learning rate, loss scale.

    Steps count from 0 over the whole run; every method but `epoch` also takes traced
    steps.

    Attributes:
        config: of the run, which ends with num_epochs or max_steps, as comes first.
        steps_per_epoch: with today's data.
        ramp_steps: N of the loss ramp i / N (samples // batch + 1 in the original,
            which keeps the last partial batch).
        first_step, first_epoch: steps and epochs that were made with other data.
    """

    config: Config
    steps_per_epoch: int
    ramp_steps: int
    first_step: int = 0
    first_epoch: int = 0

    def epoch(self, step):
        return self.first_epoch + (step - self.first_step) // self.steps_per_epoch

    def steps(self, epochs: int) -> int:
        """How many there are in the first `epochs` epochs."""
        return self.first_step + (epochs - self.first_epoch) * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        steps = self.steps(self.config.num_epochs)
        return min(steps, self.config.max_steps or steps)

    def rate(self, step):
        """Learning rate before the groups' factors.

        It is a tenth from `lr_update` on, or half a cosine from the warm-up to the end
        (SGDR: Loshchilov & Hutter, 2017, Eq. 5, without restarts).
        """
        optimizer, warmup = self.config.optimizer, self.config.optimizer.warmup_steps
        if optimizer.schedule == "step":
            dropped = self.epoch(step) >= optimizer.lr_update
            rate = optimizer.learning_rate * jnp.where(dropped, 0.1, 1.0)
        else:
            # A first try of few steps may end in the warm-up.
            falls = max(self.total_steps - warmup, 1)
            cosine = optax.cosine_decay_schedule(optimizer.learning_rate, falls)
            rate = cosine(jnp.maximum(step - warmup, 0))
        return rate * jnp.minimum((step + 1) / warmup, 1) if warmup else rate

    def loss_scale(self, step):
        """i / N in the ramp epoch, in which the CNN is unfrozen; 1 elsewhere."""
        ramp = (step - self.first_step) % self.steps_per_epoch / self.ramp_steps
        return jnp.where(self.epoch(step) == self.config.loss.ramp_epoch, ramp, 1.0)


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters that one rule of config.optimizer.rules governs.

    Attributes:
        unfreeze_epoch: the first epoch that trains it; −1: none does.
        factors: of the learning rate, by the paths of its parameters.
    """

    unfreeze_epoch: int
    factors: Mapping[str, float]

    @property
    def trainable(self) -> bool:
        """Whether it is trained, sooner or later."""
        return self.unfreeze_epoch >= 0 and any(self.factors.values())


class Optimizer:
    """Parameter groups by ordered rules (regex, learning-rate factor, unfreeze_epoch).

    The first rule that matches a parameter's path decides. A group's key, which names
    its state in checkpoints, is the number of its rule. A rule's fourth value is a
    decay of the rate per layer (BEiT: Bao et al., 2022, appendix). A matrix with
    adapters (lora.py) is in no group: they are trained instead.

    Args:
        config: `config.optimizer`.
        params: parameter tree; shapes are enough.

    Raises:
        InputError: a parameter that no rule matches, or a layer without a number.
    """

    def __init__(self, config: OptimizerConfig, params):
        self._config = config
        found: list[dict[str, re.Match]] = [{} for _ in config.rules]
        for path in flatten(params):
            if path in params.get("lora", {}):
                continue
            for number, (pattern, *_) in enumerate(config.rules):
                if match := re.search(pattern, path):
                    found[number][path] = match
                    break
            else:
                raise InputError(
                    f"config.optimizer.rules: no rule matches parameter {path}"
                )
        self.groups = {}
        for number, (pattern, factor, unfreeze_epoch, *decay) in enumerate(
            config.rules
        ):
            factors = dict.fromkeys(found[number], factor)
            if decay and factors:
                layers = {
                    path: match[1] or "-1" for path, match in found[number].items()
                }
                for path, layer in layers.items():
                    if not re.fullmatch("-1|[0-9]+", layer):
                        raise InputError(
                            f"config.optimizer.rules: the group of {pattern!r} is "
                            f"{layer!r} in {path}, not the number of a layer"
                        )
                last = max(map(int, layers.values()))
                factors = {
                    path: factor * decay[0] ** (last - int(layer))
                    for path, layer in layers.items()
                }
            self.groups[str(number)] = ParameterGroup(unfreeze_epoch, factors)

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
        """State of each group that is ever trained, by its key."""
        flat = flatten(params)
        return {
            key: self._transformation().init(
                {path: flat[path] for path in group.factors}
            )
            for key, group in self.groups.items()
            if group.trainable
        }

    def trainable_groups(self, epoch: int) -> tuple[str, ...]:
        """Keys of the groups that `epoch` trains: a static argument of the step, so
        that XLA never computes a frozen group's gradient."""
        return tuple(
            key
            for key, group in self.groups.items()
            if group.trainable and group.unfreeze_epoch <= epoch
        )

    def trainable_paths(self) -> frozenset[str]:
        """The parameters that are trained, sooner or later."""
        return frozenset(
            path
            for group in self.groups.values()
            if group.trainable
            for path in group.factors
        )

    def select(self, params, keys: tuple[str, ...]) -> Flat:
        """The leaves of `params` that belong to the groups with these keys."""
        paths = {path for key in keys for path in self.groups[key].factors}
        return {path: x for path, x in flatten(params).items() if path in paths}

    def update(self, grads: Flat, state, params: Flat, rate, keys: tuple[str, ...]):
        """One step of the groups with these keys.

        Args:
            grads: gradients of exactly the leaves in these groups.
            state: what `init` returned, or an earlier update.
            params: the same leaves.
            rate: scalar, learning rate before the groups' factors.
            keys: of the groups that are trained.

        Returns:
            The new leaves, the new state, and the gradients' global norm before
            clipping.
        """
        norm = optax.tree.norm(grads)
        # PyTorch's clip_grad_norm_, with its 1e-6.
        clip = self._config.clip
        scale = jnp.minimum(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        state, new = dict(state), {}
        for key in keys:
            group = self.groups[key]
            own = {path: params[path] for path in group.factors}
            clipped = {path: grads[path] * scale for path in group.factors}
            direction, state[key] = self._transformation().update(
                clipped, state[key], own
            )
            for path, factor in group.factors.items():
                new[path] = own[path] - rate * factor * direction[path]
        return new, state, norm
