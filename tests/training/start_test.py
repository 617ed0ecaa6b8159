"""How a run begins from converted weights."""

import jax
import numpy as np
from flax import nnx

from vse_jax.devices.mesh import make_mesh
from vse_jax.models.build import build_model, split_model
from vse_jax.training.checkpoint import CONVERTED, Checkpoints
from vse_jax.training.optimizer import Schedule
from vse_jax.training.plan import make_plan
from vse_jax.training.start import converted
from vse_jax.training.state import initial_state


def test_converted_weights_may_go_on_with_another_loss(tiny_config, tmp_path):
    """The authors' losses have no parameters: those of the new one start anew."""
    _, model = split_model(build_model(tiny_config, rngs=nnx.Rngs(7)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(CONVERTED, model, {"rsum": 1.0, "epoch": 3})
    tiny_config.loss.name = "infonce"
    schedule = Schedule.from_config(tiny_config, 4, 5)
    plan = make_plan(tiny_config, make_mesh(tiny_config, jax.devices()[:1]), schedule)
    state = initial_state(tiny_config, plan.optimizer, plan.abstract)
    start = np.array(state.params["loss"]["log_scale"])
    with Checkpoints(tmp_path) as checkpoints:
        state, reached = converted(state, plan, checkpoints)
    assert reached.step == 3 * 4
    np.testing.assert_array_equal(
        state.params["image"]["fc"]["kernel"], model["params"]["image"]["fc"]["kernel"]
    )
    assert state.params["loss"]["log_scale"] == start
