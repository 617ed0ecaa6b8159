"""Saving and restoring (kill, resume and full disks: main_test.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.training.checkpoint import Checkpoints


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
        checkpoints.save_last(5, model(1.0), rest(5), {"best_rsum": 100.5})
        checkpoints.save_last(10, model(2.0), rest(10), {"best_rsum": 100.5})

    target = abstract(model(0.0)), abstract(rest(0))
    with Checkpoints(tmp_path) as again:
        assert (again.last_step(), again.best_step()) == (10, 5)
        last, optimizer, data = again.restore_last(*target)
        best, best_data = again.restore_best(target[0])
    jax.tree.map(np.testing.assert_array_equal, last, model(2.0))
    jax.tree.map(np.testing.assert_array_equal, best, model(1.0))
    assert (data, best_data) == ({"best_rsum": 100.5}, {"rsum": 100.5})
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
