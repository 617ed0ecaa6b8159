"""Programs compiled ahead of their use."""

import threading

import jax
import jax.numpy as jnp
import pytest

from vse_jax.distributed.compile_cache import CompileCache


def lower(x=1.0):
    return jax.jit(lambda y: y + x).lower(jnp.float32(0))


def test_each_is_made_once_and_announced(caplog):
    caplog.set_level("INFO")
    with CompileCache() as programs:
        programs.start("sum", "a", lower)
        first = programs.get("sum", "a", lower)
        assert programs.get("sum", "a", pytest.fail) is first
        assert programs.get("other", "b", lambda: lower(2.0))(jnp.float32(1)) == 3
    assert [line.split(" in ")[0] for line in caplog.messages] == [
        "compiled sum",
        "compiled other",
    ]


def test_what_goes_wrong_is_raised_where_it_is_asked_for():
    def refuse():
        raise ValueError("17 tokens, but 16 positions")

    with CompileCache() as programs:
        programs.start("tower", "a", refuse)
        with pytest.raises(ValueError, match="17 tokens"):
            programs.get("tower", "a", refuse)


def test_the_end_of_a_run_does_not_wait_for_what_was_not_begun():
    go, made = threading.Event(), []

    def slow(number):
        made.append(number)
        go.wait(60)
        return lower()

    with CompileCache() as programs:
        for number in range(9):
            programs.start("sum", number, lambda number=number: slow(number))
        threading.Timer(0.2, go.set).start()
    assert len(made) < 9
