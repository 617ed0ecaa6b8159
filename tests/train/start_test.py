"""How a run begins from converted weights, and on other data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.resume import load_converted, resume_progress
from vse_jax.checkpoints.runs import CONVERTED, Checkpoints, TrainProgress
from vse_jax.data.dataset import read_split
from vse_jax.data.digests import data_digests
from vse_jax.distributed.mesh import make_mesh
from vse_jax.models.build import build_model, split_model
from vse_jax.optimizer import Schedule
from vse_jax.train_step import Trainer


def test_converted_weights_may_go_on_with_another_loss(tiny_config, tmp_path):
    """The authors' losses have no parameters: those of the new one are initialised."""
    _, model = split_model(build_model(tiny_config, rngs=nnx.Rngs(7)))
    with Checkpoints(tmp_path) as checkpoints:
        about = TrainProgress(best_rsum=1.0, best_step=CONVERTED, best_epoch=3)
        checkpoints.save(model, None, about)
    tiny_config.loss.name = "infonce"
    schedule = Schedule(tiny_config, 4, 5)
    mesh = make_mesh(tiny_config, jax.devices()[:1])
    trainer = Trainer.create(tiny_config, mesh, schedule)
    state = trainer.initial_state()
    start = np.array(state.params["loss"]["log_scale"])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.holds_converted()
        loaded, epochs = load_converted(
            checkpoints, trainer.abstract_model, state.params
        )
    assert epochs == 3
    state = trainer.with_weights(state, loaded, schedule.steps(epochs))
    assert int(state.step) == 3 * 4
    np.testing.assert_array_equal(
        state.params["image"]["fc"]["kernel"], model["params"]["image"]["fc"]["kernel"]
    )
    assert state.params["loss"]["log_scale"] == start


@pytest.fixture
def splits(tiny_config):
    return [read_split(tiny_config, name) for name in ("train", "dev", "test")]


def stopped(folder, **progress):
    """A folder whose newest checkpoint stands there; the best is kept beside it."""
    with Checkpoints(folder) as checkpoints:
        array = {"x": jnp.zeros(1)}
        if (best := progress.get("best_step")) is not None:
            checkpoints.save(array, array, TrainProgress(best, best_step=best))
        checkpoints.save(array, array, TrainProgress(**progress))


def without_the_last(split):
    offsets = split.offsets[:-1]
    return dataclasses.replace(
        split,
        image_ids=split.image_ids[:-1],
        captions=split.captions[: offsets[-1]],
        offsets=offsets,
    )


def test_an_epoch_that_had_begun_on_other_data_begins_again(
    tiny_config, splits, tmp_path
):
    """Step 100: three epochs of 30 steps and ten steps of the fourth."""
    data = data_digests(tiny_config, splits)
    known = {"validated": 90, "best_rsum": 5.0, "best_step": 60, "data": data}
    stopped(tmp_path, step=100, **known)
    grown = [without_the_last(splits[0]), *splits[1:]]
    with Checkpoints(tmp_path) as checkpoints:
        same = resume_progress(tiny_config, splits, checkpoints, False)
        with pytest.raises(InputError, match=r"'train' had 96 .* now 95 and 475"):
            resume_progress(tiny_config, grown, checkpoints, False)
        progress, new_data = resume_progress(tiny_config, grown, checkpoints, True)
    assert same == (TrainProgress(step=100, **known), False)
    assert new_data
    # Nothing that was validated before is comparable.
    now = data_digests(tiny_config, grown)
    assert progress == TrainProgress(
        100, 0, 5.0, 60, first_step=100, first_epoch=3, data=now
    )


def test_data_that_change_twice(tiny_config, splits, tmp_path):
    """Epochs were counted from step 100 on: two of 30 steps since then."""
    data = data_digests(tiny_config, splits)
    stopped(tmp_path, step=165, first_step=100, first_epoch=3, data=data)
    grown = [splits[0], without_the_last(splits[1]), splits[2]]
    with Checkpoints(tmp_path) as checkpoints:
        progress, _ = resume_progress(tiny_config, grown, checkpoints, True)
    assert (progress.first_step, progress.first_epoch) == (165, 5)


def test_another_split_to_test_is_no_other_data(tiny_config, splits, tmp_path):
    stopped(tmp_path, step=30, data=data_digests(tiny_config, splits))
    other = dataclasses.replace(without_the_last(splits[2]), name="testall")
    with Checkpoints(tmp_path) as checkpoints:
        progress, new_data = resume_progress(
            tiny_config, [*splits[:2], other], checkpoints, False
        )
    assert not new_data
    # Both are known from now on.
    assert list(progress.data["splits"]) == ["train", "dev", "test", "testall"]


def test_what_the_newest_checkpoint_says_is_replaced(tmp_path):
    stopped(tmp_path, step=9, validated=9, best_rsum=425.0, best_step=3)
    now = TrainProgress(9, 0, 220.5, 3, first_step=9, first_epoch=3, data={"x": "new"})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.update(now)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == now
        array = {"x": jnp.zeros(1)}
        assert checkpoints.restore_best(array) == (array, now)
