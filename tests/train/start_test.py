"""How a run begins from converted weights, and on other data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.runs import CONVERTED, Checkpoints, Reached
from vse_jax.data.dataset import read_split
from vse_jax.data.digests import data_digests
from vse_jax.distributed.mesh import make_mesh
from vse_jax.models.build import build_model, split_model
from vse_jax.optimizer import Schedule
from vse_jax.training.plan import make_plan
from vse_jax.training.start import Splits, converted, reached_before
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
        state, step = converted(state, plan, checkpoints)
    assert step == int(state.step) == 3 * 4
    np.testing.assert_array_equal(
        state.params["image"]["fc"]["kernel"], model["params"]["image"]["fc"]["kernel"]
    )
    assert state.params["loss"]["log_scale"] == start


@pytest.fixture
def splits(tiny_config):
    return Splits(*(read_split(tiny_config, name) for name in ("train", "dev", "test")))


def stopped(folder, **reached):
    """A folder whose last checkpoint stands there."""
    with Checkpoints(folder) as checkpoints:
        array = {"x": jnp.zeros(1)}
        checkpoints.save_last(array, array, Reached(**reached))


def without_the_last(split):
    count = split.captions_per_image
    return dataclasses.replace(
        split, image_ids=split.image_ids[:-1], captions=split.captions[:-count]
    )


def test_an_epoch_that_had_begun_on_other_data_begins_again(
    tiny_config, splits, tmp_path
):
    """Step 100: three epochs of 30 steps and ten steps of the fourth."""
    data = data_digests(tiny_config, splits)
    known = {"validated": 90, "best_rsum": 5.0, "best_step": 60, "data": data}
    stopped(tmp_path, step=100, **known)
    grown = splits._replace(train=without_the_last(splits.train))
    with Checkpoints(tmp_path) as checkpoints:
        same = reached_before(tiny_config, splits, checkpoints, False)
        with pytest.raises(InputError, match=r"'train' had 96 .* now 95 and 475"):
            reached_before(tiny_config, grown, checkpoints, False)
        reached, new_data = reached_before(tiny_config, grown, checkpoints, True)
    assert same == (Reached(step=100, **known), False)
    assert new_data
    # Nothing that was validated before is comparable.
    now = data_digests(tiny_config, grown)
    assert reached == Reached(100, 0, 5.0, 60, first_step=100, first_epoch=3, data=now)


def test_data_that_change_twice(tiny_config, splits, tmp_path):
    """Epochs were counted from step 100 on: two of 30 steps since then."""
    data = data_digests(tiny_config, splits)
    stopped(tmp_path, step=165, first_step=100, first_epoch=3, data=data)
    grown = splits._replace(dev=without_the_last(splits.dev))
    with Checkpoints(tmp_path) as checkpoints:
        reached, _ = reached_before(tiny_config, grown, checkpoints, True)
    assert (reached.first_step, reached.first_epoch) == (165, 5)


def test_another_split_to_test_is_no_other_data(tiny_config, splits, tmp_path):
    stopped(tmp_path, step=30, data=data_digests(tiny_config, splits))
    other = dataclasses.replace(without_the_last(splits.test), name="testall")
    with Checkpoints(tmp_path) as checkpoints:
        reached, new_data = reached_before(
            tiny_config, splits._replace(test=other), checkpoints, False
        )
    assert not new_data
    # Both are known from now on.
    assert list(reached.data["splits"]) == ["train", "dev", "test", "testall"]


def test_what_a_checkpoint_says_is_replaced_in_both(tmp_path):
    array = {"x": jnp.zeros(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(array, array, Reached(9, 9, 425.0, 3))
        checkpoints.save_best(3, array, {"rsum": 425.0, "epoch": 1})
        checkpoints.wait()
        known = {"first_step": 9, "first_epoch": 3, "data": {"vocabulary": "new"}}
        checkpoints.restate(Reached(9, 0, 220.5, 3, **known))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_progress() == {
            "rsum": 220.5,
            "epoch": 1,
            "vocabulary": "new",
        }
        reached = checkpoints.reached()
    assert reached == Reached(9, 0, 220.5, 3, **known)
