import errno
from pathlib import Path

import pytest

from vse_jax.base.errors import InputError
from vse_jax.base.files import whole_folder, write_atomically


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
