"""Agreement between processes, with a faked gathering of what they say."""

import json

import jax
import pytest

from vse_jax.base.errors import InputError
from vse_jax.distributed import multihost
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero


@pytest.fixture
def other(monkeypatch):
    """What process 1 says, once it is set; this is process 0."""
    said = {}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost, "_gather", lambda text: [text, said.get("text", text)]
    )
    return said


def test_equal_facts_pass(other):
    assert_equal_across_hosts("config", {"seed": 0})


def test_all_differences_are_named(other, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    other["text"] = json.dumps(["there", {"seed": 1, "mode": "eval"}])
    with pytest.raises(InputError) as error:
        assert_equal_across_hosts("config", {"seed": 0, "mode": "train", "rest": 7})
    assert str(error.value) == (
        "config differs between the processes: mode ('eval' in process 1 on there, "
        "'train' in process 0 on here), rest (None in process 1 on there, 7 in process "
        "0 on here), seed (1 in process 1 on there, 0 in process 0 on here)"
    )


def test_process_0_works_for_all(other):
    assert on_process_zero(lambda: {"rsum": 1.5}) == {"rsum": 1.5}


def test_a_failure_of_process_0_is_its_own_and_everybodys(other, monkeypatch):
    def fail():
        raise InputError("runs/x: No space left on device")

    with pytest.raises(InputError, match=r"^runs/x: No space"):
        on_process_zero(fail)
    # Process 1 does no work, and learns what became of it.
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    said = json.dumps({"error": "runs/x: No space left on device"})
    monkeypatch.setattr(multihost, "_gather", lambda text: [said, text])
    with pytest.raises(InputError, match=r"^process 0: runs/x: No space"):
        on_process_zero(fail)


def test_a_bug_of_process_0_keeps_its_type(other):
    with pytest.raises(ZeroDivisionError):
        on_process_zero(lambda: 1 / 0)


def test_an_interrupted_process_0_leaves_nobody_waiting(other, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    said = []
    monkeypatch.setattr(multihost, "_gather", lambda text: said.append(text) or said)
    with pytest.raises(KeyboardInterrupt):
        on_process_zero(interrupt)
    assert json.loads(said[0]) == {"error": "KeyboardInterrupt()"}


def test_alone_nothing_is_asked():
    assert_equal_across_hosts("config", {"anything": object()})
    assert on_process_zero(lambda: object) is object
