"""Saving and restoring (kill, resume and full disks: main_test.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vse_jax.base.errors import InputError
from vse_jax.training.checkpoint import CONVERTED, Checkpoints, Reached


def model(value: float, size: int = 1000):
    # Twelve layers: restored without care, "10" would come before "2".
    layers = {i: {"w": jnp.full((size,), value + i)} for i in range(12)}
    return {"params": {"layers": layers}, "batch_stats": {}}


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def rest(step: int):
    return {"step": jnp.int32(step), "rng": jax.random.key(step)}


def test_last_and_best_come_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step() is None
        checkpoints.save_best(5, model(1.0), {"rsum": 100.5})
        checkpoints.save_last(model(1.0), rest(5), Reached(5, 5, 100.5, 5))
        checkpoints.save_last(model(2.0), rest(10), Reached(10, 5, 100.5, 5))

    target = abstract(model(0.0)), abstract(rest(0))
    with Checkpoints(tmp_path) as again:
        assert (again.last_step(), again.best_step()) == (10, 5)
        reached = again.reached()
        last, optimizer = again.restore_last(*target)
        best, best_data = again.restore_best(target[0])
    jax.tree.map(np.testing.assert_array_equal, last, model(2.0))
    jax.tree.map(np.testing.assert_array_equal, best, model(1.0))
    assert (reached, best_data) == (Reached(10, 5, 100.5, 5), {"rsum": 100.5})
    assert int(optimizer["step"]) == 10
    assert optimizer["rng"] == jax.random.key(10)


def test_another_models_checkpoint_is_refused_in_one_line(tmp_path):
    named = r"layers/0/w \(\(1000,\) there, \(7,\) here\)"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(1, model(1.0), {"rsum": 1.0})
        checkpoints.wait()
        with pytest.raises(InputError, match=named) as error:
            checkpoints.restore_best(abstract(model(0.0, size=7)))
    assert "\n" not in str(error.value)


def test_no_checkpoint_yet(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="best: no checkpoint; train first"),
    ):
        checkpoints.restore_best(abstract(model(0.0)))


def test_a_save_that_orbax_skips_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(30, model(1.0), {"rsum": 1.0})
        checkpoints.wait()
        with pytest.raises(InputError, match="step 10 was not saved, because step 30"):
            checkpoints.save_best(10, model(2.0), {"rsum": 99.0})


def test_best_without_last_is_refused_unless_it_was_converted(tmp_path):
    with Checkpoints(tmp_path / "converted") as checkpoints:
        checkpoints.check_start()
        checkpoints.save_best(CONVERTED, model(1.0), {"rsum": 1.0, "epoch": 3})
        checkpoints.wait()
        checkpoints.check_start()
    with Checkpoints(tmp_path / "trained") as checkpoints:
        checkpoints.save_best(30, model(1.0), {"rsum": 1.0, "epoch": 3})
        checkpoints.wait()
        with pytest.raises(InputError, match=r"best/30 .* remove .* to start again"):
            checkpoints.check_start()


def test_best_is_the_one_that_last_names(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.best_is_missing(Reached(step=7))  # not validated yet
        assert checkpoints.best_is_missing(Reached(30, 30, 5.0, 30))
        checkpoints.save_best(30, model(1.0), {"rsum": 1.0})
        checkpoints.wait()
        assert not checkpoints.best_is_missing(Reached(30, 30, 5.0, 30))
        assert not checkpoints.best_is_missing(Reached(45, 45, 5.0, 30))
        # Stopped in a validation and again after it: found, but `last` is older.
        assert not checkpoints.best_is_missing(Reached(30, 15, 4.0, 15))
        assert checkpoints.best_is_missing(Reached(45, 45, 6.0, 45))
        with pytest.raises(InputError, match="15 was the best, but best/ holds 30"):
            checkpoints.best_is_missing(Reached(45, 45, 5.0, 15))


@pytest.mark.parametrize(
    "change", [lambda x: x.pop("data"), lambda x: x.update(from_the_future=1)]
)
def test_another_versions_checkpoint_is_named(tmp_path, change):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(model(1.0), rest(5), Reached(5))
    file = tmp_path / "checkpoints/last/5/data/metadata"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            InputError, match="last/5: written by another version of vse_jax"
        ),
    ):
        checkpoints.reached()


def test_a_bug_is_no_full_disk(tmp_path):
    """Only what the system says of a file is called a failed save."""
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="object"),
    ):
        checkpoints.save_best(1, {"params": object()}, {"rsum": 1.0})


def test_a_failed_last_save_still_ends_orbax(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    closed = []
    monkeypatch.setattr(
        ocp.CheckpointManager, "close", lambda self: closed.append(self)
    )
    with pytest.raises(InputError, match="No space left"), Checkpoints(tmp_path):
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    assert len(closed) == 2
