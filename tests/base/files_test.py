import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vse_jax.base.errors import InputError
from vse_jax.base.files import (
    printable,
    read_object,
    whole_folder,
    write_atomically,
)


def test_the_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "a" / "b"
    with whole_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with whole_folder(tmp_path / "b") as folder:
            (folder / "file").write_text("x")
            raise InputError("why")

    with pytest.raises(InputError, match="why"):
        fail()
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_there_a_full_one_not(tmp_path):
    with whole_folder(tmp_path / "b"):
        pass
    with whole_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("x")
    with pytest.raises(InputError, match=r"b: is already there"):
        whole_folder(tmp_path / "b").__enter__()


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(InputError, match=r"/proc/absent/b: "):
        whole_folder(Path("/proc/absent/b")).__enter__()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space") as error:
        write_atomically(path, b"new")
    assert error.value.filename == str(path)  # errors_on_one_line says it

    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def renames(monkeypatch, act) -> None:
    """Lets `act(number)` run before each rename, numbered from 1."""
    numbers = itertools.count(1)

    def counted(rename):
        def run(*args, **kwargs):
            act(next(numbers))
            return rename(*args, **kwargs)

        return run

    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(os, "replace", counted(os.replace))


def replace_folder(target: Path) -> None:
    with whole_folder(target, replace=True) as folder:
        (folder / "file").write_text("new")


@pytest.fixture
def old(tmp_path) -> Path:
    target = tmp_path / "share"
    target.mkdir()
    (target / "file").write_text("old")
    (target / "by hand").write_text("mine")
    return target


def test_a_folder_is_replaced_as_a_whole(old):
    replace_folder(old)
    assert [path.name for path in old.iterdir()] == ["file"]
    assert (old / "file").read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(old, monkeypatch, failing):
    def fail(number):
        if number == failing:
            raise PermissionError(errno.EACCES, "Permission denied")

    renames(monkeypatch, fail)
    with pytest.raises(InputError, match="share: Permission denied"):
        replace_folder(old)
    assert (old / "file").read_text() == "old"
    assert (old / "by hand").read_text() == "mine"
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_that_cannot_be_put_back_is_named(old, monkeypatch):
    def fail(number):
        if number > 1:
            raise PermissionError(errno.EACCES, "Permission denied")

    renames(monkeypatch, fail)
    with pytest.raises(InputError, match=r"what was there is in (\S+)") as error:
        replace_folder(old)
    kept = Path(str(error.value).split()[-1])
    assert (kept / "by hand").read_text() == "mine"


KILLED = """
import os, sys
from pathlib import Path
from vse_jax.base.files import whole_folder

count, rename = 0, os.rename

def dies(*args, **kwargs):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os._exit(9)
    return rename(*args, **kwargs)

os.rename = os.replace = dies
with whole_folder(Path(sys.argv[1]), replace=True) as folder:
    (folder / "file").write_text("new")
"""


@pytest.mark.parametrize("renames_done", [0, 1, 2])
def test_a_kill_between_renames_loses_neither(old, renames_done):
    kill = [sys.executable, "-c", KILLED, str(old), str(renames_done + 1)]
    assert subprocess.run(kill, check=False).returncode == 9
    with whole_folder(old, replace=True) as folder:
        found = (old / "file").read_text()
        assert found == ("new" if renames_done == 2 else "old")
        assert (old / "by hand").exists() == (found == "old")
        (folder / "file").write_text("next")
    assert (old / "file").read_text() == "next"
    assert not (old.parent / ".share.before").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("2019/a b.jpg", "2019/a b.jpg"),
        (
            "cafe\u0301/\U0001f469\u200d\U0001f52c.jpg",
            "café/\U0001f469\u200d\U0001f52c.jpg",
        ),
        ("\udce9t\udce9/\udcff", "\\xe9t\\xe9/\\xff"),
        ("a\nb\x1b[31m\x7f\u2028", "a\\nb\\x1b[31m\\x7f\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_names_are_shown_whatever_their_bytes(name, shown):
    assert printable(name) == shown
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"annotations\.json: not "):
        read_object(path)


def test_a_missing_json_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        read_object(tmp_path / "none.json")
