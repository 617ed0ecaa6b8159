"""One writer at a time, also where the file system has no locks."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from vse_jax.base.errors import InputError
from vse_jax.base.lock import only_writer

pytestmark = pytest.mark.system

ELSEWHERE = {"host": "elsewhere", "pid": 4711, "since": "2026-01-31 09:15:00+00:00"}


def refused(path) -> str:
    with pytest.raises(InputError) as error, only_writer(path, "writes here"):
        pass
    return str(error.value)


def test_the_second_is_told_of_the_first_and_changes_nothing(tmp_path):
    path = tmp_path / "new" / "lock"
    with only_writer(path, "writes here"):
        before = path.read_bytes(), path.stat().st_mtime_ns
        holder = json.loads(before[0])
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert refused(path) == (
            f"{tmp_path / 'new'}: another process (pid {os.getpid()} on "
            f"{holder['host']}, since {holder['since']}) writes here; wait for its end"
        )
        assert before == (path.read_bytes(), path.stat().st_mtime_ns)
    assert not path.parent.exists()
    with only_writer(path, "writes here"):
        (tmp_path / "new" / "result").touch()
    assert [file.name for file in path.parent.iterdir()] == ["result"]


def test_it_ends_with_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "lock", "x"):
        _ = 1 / 0
    with only_writer(tmp_path / "lock", "x"):
        pass


def test_a_process_that_has_just_taken_it_has_said_nothing_yet(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process (which has just started) writes here" in refused(path)


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    """Whatever it says: the system knows that nobody has it."""
    path = tmp_path / "lock"
    for left in ("", "{", json.dumps(ELSEWHERE)):
        path.write_text(left)
        with only_writer(path, "x"):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_that_ended_in_between_is_asked_for_again(tmp_path, monkeypatch):
    """Its file has lost its name: a lock on it would keep nobody out."""
    path, flock = tmp_path / "lock", fcntl.flock

    def late(file, how):
        flock(file, how)
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with only_writer(path, "x"):
        assert "another process" in refused(path)


class TestWithoutLocks:
    """On a file system that has none the file's content decides."""

    @pytest.fixture(autouse=True)
    def none(self, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)

    def test_a_living_process_of_this_host_has_it(self, tmp_path):
        path = tmp_path / "lock"
        holder = ELSEWHERE | {"host": socket.gethostname(), "pid": os.getppid()}
        path.write_text(json.dumps(holder))
        assert f"(pid {os.getppid()} on {socket.gethostname()}," in refused(path)

    def test_one_that_has_ended_has_not(self, tmp_path):
        path = tmp_path / "lock"
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for pid in (ended.pid, os.getpid()):  # as a container that starts again
            holder = ELSEWHERE | {"host": socket.gethostname(), "pid": pid}
            path.write_text(json.dumps(holder))
            with only_writer(path, "x"):
                pass

    def test_of_another_host_nobody_knows(self, tmp_path):
        path = tmp_path / "lock"
        path.write_text(json.dumps(ELSEWHERE))
        assert refused(path) == (
            f"{tmp_path}: another process (pid 4711 on elsewhere, since "
            "2026-01-31 09:15:00+00:00) writes here; wait for its end, or remove "
            f"{path} if it has ended"
        )
