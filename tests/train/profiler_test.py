"""config.profile: a trace of the steps that it names, and of no others."""

import jax
import jax.numpy as jnp
import pytest

from vse_jax.training.profiler import Profiler


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: made.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def run(profiler, steps, calls):
    for step in steps:
        profiler.before(step)
        calls.append(step)
        profiler.after(step, jnp.zeros(1))
    profiler.close()
    return calls


def test_traces_the_steps_it_was_told(tmp_path, calls):
    profiler = Profiler("3:4", tmp_path)
    assert run(profiler, range(1, 7), calls) == [
        1,
        2,
        str(tmp_path),
        3,
        4,
        "stop",
        5,
        6,
    ]


def test_a_run_that_ends_earlier_ends_its_trace(tmp_path, calls):
    assert run(Profiler("2:9", tmp_path), (1, 2), calls) == [
        1,
        str(tmp_path),
        2,
        "stop",
    ]


def test_a_resume_in_the_middle_traces_the_rest(tmp_path, calls):
    assert run(Profiler("2:5", tmp_path), (4, 5), calls) == [
        str(tmp_path),
        4,
        5,
        "stop",
    ]


def test_without_the_field_nothing_is_traced(tmp_path, calls):
    assert run(Profiler(None, tmp_path), (1, 2), calls) == [1, 2]
