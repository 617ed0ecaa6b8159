"""A training step of a model with a part of one's own (examples/)."""

import jax
import numpy as np

from tests.helpers.steps import batch_of, set_up
from vse_jax.base.trees import flatten
from vse_jax.distributed.mesh import batch_sharding, put_batch


def one_step(config) -> set[str]:
    """The paths of the parameters that one step over eight devices changes."""
    config.debug = False
    mesh, optimizer, state, step = set_up(config, devices=8)
    before = {path: np.array(x) for path, x in flatten(state.params).items()}
    batch = put_batch(batch_of(config), batch_sharding(mesh))
    state, scalars = step(state, batch, optimizer.trainable_groups(0))
    assert np.isfinite(scalars["loss"])
    after = jax.device_get(flatten(state.params))
    return {path for path, x in before.items() if not np.array_equal(x, after[path])}
