import itertools

import pytest

from vse_jax.base import progress as module
from vse_jax.base.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances four seconds at each look."""
    ticks = itertools.count(step=4.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks))


def test_items_pass_through_in_order():
    assert list(progress(range(5), "work")) == [0, 1, 2, 3, 4]
    assert list(progress((k for k in "abc"), "work")) == ["a", "b", "c"]


def test_a_quick_loop_prints_nothing(capsys):
    list(progress(range(5), "work"))
    assert capsys.readouterr().err == ""


def test_a_log_gets_plain_lines_with_rate_and_time_left(clock, capsys):
    list(progress(range(8), "epoch 1/5", unit="step"))
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/5: 3/8 step, 0.25 step/s, 20 s left",
        "epoch 1/5: 6/8 step, 0.25 step/s, 8 s left",
        "epoch 1/5: 8/8 step, 0.222 step/s, done in 36 s",
    ]


def test_items_without_a_length_show_their_count(clock, capsys):
    list(progress(iter("abc"), "work"))
    assert capsys.readouterr().err.splitlines() == [
        "work: 3 it, 0.25 it/s",
        "work: 3 it, 0.188 it/s, done in 16 s",
    ]


def test_work_done_before_counts_but_not_as_speed(clock, capsys):
    list(progress(range(1), "work", total=10, initial=9))
    assert capsys.readouterr().err == "work: 10/10 it, 0.125 it/s, done in 8 s\n"


def test_a_terminal_gets_a_bar_where_it_takes_a_while(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    list(progress(range(5), "work"))
    assert capsys.readouterr().err.strip() == ""
    monkeypatch.setattr(module, "_WORTH_IT_S", 0.0)
    list(progress(range(5), "work"))
    assert "work" in capsys.readouterr().err
