"""What a line of metrics.jsonl says of the steps since the last one."""

import itertools
import math
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from vse_jax.base.errors import InputError
from vse_jax.training import recorder as module
from vse_jax.training.metric_writer import MetricWriter, read_metrics
from vse_jax.training.recorder import Recorder


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """One whose clock advances a second at each look."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(module, "time", clock)
    with_close = Recorder(MetricWriter(tmp_path), batch_size=8)
    yield with_close
    with_close.close()


def scalars(loss, lr=0.1):
    values = {"loss": loss, "grad_norm": 2 * loss, "lr": lr}
    return {name: jnp.float32(x) for name, x in values.items()}


def test_a_line_holds_means_and_the_last_rate(recorder, tmp_path):
    recorder.add(1, scalars(1.0))  # which also waits for its compilation: no rate
    recorder.add(2, scalars(3.0, lr=0.5))
    assert recorder.timed_next(iter([7])) == 7  # waits from one look to the next
    recorder.flush()
    recorder.flush()  # nothing new, no line
    first, line = read_metrics(tmp_path)
    assert first.keys() == {"step", "perf/first_step_s"}
    assert line == {
        "step": 2,
        "train/loss": 2.0,
        "train/grad_norm": 4.0,
        "train/lr": 0.5,
        "perf/images_per_s": 8 / 3,
        "perf/data_wait": pytest.approx(1 / 3),
    }


def test_a_line_that_is_due_comes_with_the_next_step(recorder, tmp_path):
    recorder.add(1, scalars(1.0))
    recorder.flush_soon()
    assert len(read_metrics(tmp_path)) == 1  # what the first step took
    recorder.add(2, scalars(2.0))
    recorder.flush()
    rows = read_metrics(tmp_path)
    assert [row.get("train/loss") for row in rows] == [None, 1.0, 2.0]
    assert ["perf/images_per_s" in row for row in rows] == [False, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_of_many_is_named(recorder, tmp_path, bad):
    for step, loss in enumerate((1.0, bad, 2.0, bad), start=1):
        recorder.add(step, scalars(loss))
    with pytest.raises(InputError, match=f"train/loss is {bad} at step 2; stopped"):
        recorder.flush()
    assert all("train/loss" not in row for row in read_metrics(tmp_path))


def test_advice_on_a_bad_step_fits(recorder, tmp_path):
    """Before the first update, it cannot be the learning rate."""
    recorder.add(1, scalars(math.nan))
    with pytest.raises(InputError, match=r"at step 1; stopped: no weight was") as error:
        recorder.flush()
    assert "learning_rate" not in str(error.value)
    resumed = Recorder(MetricWriter(tmp_path), batch_size=8, first_step=None)
    resumed.add(1, scalars(math.nan))
    with pytest.raises(InputError, match=r"lower config\.optimizer\.learning_rate\?"):
        resumed.flush()
    resumed.close()


def test_a_validation_names_its_split(recorder, tmp_path):
    ways = {way: {"r1": 1.0, "medr": 7.0} for way in ("i2t", "t2i")}
    recorder.write_validation(3, "dev", {"rsum": 2.0, **ways})
    (line,) = read_metrics(tmp_path)
    assert line["eval/dev/rsum"] == 2.0
    assert line["eval/dev/t2i_medr"] == 7.0
