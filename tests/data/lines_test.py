"""Lines in one buffer behave like a list of them."""

import pytest

from vse_jax.base.errors import InputError
from vse_jax.data import lines as lines_module
from vse_jax.data.lines import Lines

TEXT = ["a red dog", "", "日本の犬", "a\u2028b", "x" * 40]


@pytest.fixture(params=[2**24, 7, 3], ids="a chunk of {} bytes".format)
def chunks(request, monkeypatch):
    monkeypatch.setattr(lines_module, "_CHUNK", request.param)


def test_a_slice_and_an_index_are_those_of_the_list():
    lines = Lines.of(TEXT)
    assert [*lines] == TEXT
    assert len(lines) == 5
    for index in (0, 3, -1, slice(1, 3), slice(2, 2), slice(None, None, 2), slice(9)):
        assert lines[index] == TEXT[index]
    with pytest.raises(IndexError):
        lines[5]
    assert lines[1:3] == Lines.of(TEXT[1:3])
    assert lines[1:3].sha256() == Lines.of(TEXT[1:3]).sha256() != lines.sha256()
    assert lines != TEXT[:-1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_line_end_and_the_spaces_around_lines(chunks, end, last, tmp_path):
    path = tmp_path / "caps.txt"
    text = end.join(f" {line}\t" for line in TEXT) + (end if last else "")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Lines.read(path) == TEXT


def test_a_line_that_is_not_utf8_is_numbered(chunks, tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes(b"one\ntwo\nthr\xffee\nfour\n")
    with pytest.raises(InputError, match=r"caps\.txt, line 3: not UTF-8"):
        Lines.read(path)


def test_files_without_lines(tmp_path):
    with pytest.raises(InputError, match="absent: No such file"):
        Lines.read(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="empty: empty"):
        Lines.read(tmp_path / "empty")
