"""Which files of a folder are images."""

import unicodedata
from pathlib import Path

import pytest

from vse_search.folders import Exclusions, Passed, walk


def test_walk_leaves_out_hidden_excluded_and_linked(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for path in (
        *(outside / "o.jpg", inside / "b.JPG", inside / "a" / "c.heic"),
        *(inside / ".hidden.jpg", inside / ".cache" / "d.jpg", inside / "notes.txt"),
        *(inside / "raw" / "e.jpg", inside / "a" / "raw" / "f.jpg"),
        *(inside / "a" / "g.gif", inside / "2019" / "x" / "h.jpg"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (inside / "link.jpg").symlink_to(outside / "o.jpg")
    (inside / "linked").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "folder.jpg").mkdir()

    assert walked(inside, "raw", "*.gif", "2019/x") == ["b.JPG", "a/c.heic"]


def test_a_file_that_vanishes_meanwhile_is_none(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    listed = [(str(tmp_path), [], ["a.jpg", "gone.jpg"])]
    monkeypatch.setattr("os.walk", lambda *_, **__: listed)
    assert walked(tmp_path) == ["a.jpg"]


def tree(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def walked(folder: Path, *patterns: str) -> list[str]:
    return [seen.path for seen in walk(folder, Exclusions(patterns), Passed())]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), ["a.jpg", "b.gif", "2019/raw/e.jpg", "2019/x/raw/f.jpg", "raw/g.jpg"]),
        (("raw/",), ["a.jpg", "b.gif"]),
        (("/raw",), ["a.jpg", "b.gif", "2019/raw/e.jpg", "2019/x/raw/f.jpg"]),
        (("2019/raw",), ["a.jpg", "b.gif", "2019/x/raw/f.jpg", "raw/g.jpg"]),
        (("*/raw/*",), ["a.jpg", "b.gif", "2019/x/raw/f.jpg", "raw/g.jpg"]),
        (("**/raw/*",), ["a.jpg", "b.gif"]),
        (("*.gif", "2019"), ["a.jpg", "raw/g.jpg"]),
        (("*.jpg", "!a.jpg"), ["a.jpg", "b.gif"]),
        (("a.jpg/",), None),  # no folder
    ],
)
def test_patterns_are_those_of_gitignore(tmp_path, patterns, found):
    paths = ["a.jpg", "b.gif", "2019/raw/e.jpg", "2019/x/raw/f.jpg", "raw/g.jpg"]
    assert walked(tree(tmp_path, *paths), *patterns) == (found or paths)


def test_a_pattern_finds_a_name_however_unicode_spells_it(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    tree(tmp_path, f"{composed}/a.jpg", f"{apart}/b.jpg", "e/c.jpg")
    for typed in (composed, apart):
        assert walked(tmp_path, f"{typed}/") == ["e/c.jpg"]


NAS = (
    *("@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.jpg", "#snapshot/a.jpg"),
    *(".@__thumb/a.jpg", "@Recycle/a.jpg", "@Recently-Snapshot/1/a.jpg"),
    *(
        "lost+found/a.jpg",
        "$RECYCLE.BIN/S-1-5/a.jpg",
        "System Volume Information/a.jpg",
    ),
    *(".Trash-1000/files/a.jpg", ".thumbnails/a.jpg", "__MACOSX/a.jpg"),
    *("node_modules/x/a.png", ".git/a.png", "._IMG_1.jpg"),
)


def test_thumbnails_and_trash_are_left_out_unless_they_are_asked_for(tmp_path):
    deep = [f"2019/{path}" for path in NAS]
    tree(tmp_path, "IMG_1.jpg", "2019/recycle.jpg", "2019/#1.jpg", *NAS, *deep)
    assert walked(tmp_path) == ["IMG_1.jpg", "2019/#1.jpg", "2019/recycle.jpg"]
    back = walked(tmp_path, "!#recycle/", "!.thumbnails/", "2019")
    assert back == ["IMG_1.jpg", "#recycle/a.jpg", ".thumbnails/a.jpg"]


def test_what_is_no_picture_is_told(tmp_path):
    tree(tmp_path, "a.jpg", "a.jpg.xmp", "b.CR3", "x/c.arw", "x/film.MOV", ".DS_Store")
    (tmp_path / "x/link").symlink_to(tmp_path)
    passed = Passed()
    assert len(list(walk(tmp_path, Exclusions(["*.gif"]), passed))) == 1
    assert passed.links == {"x/link"}
    assert passed.raw == {".cr3": 1, ".arw": 1}
    assert passed.others == {".xmp": 1, ".mov": 1}
    assert (passed.excluded, passed.unseen) == (0, {})
    assert passed.told() == (
        "1 symbolic link, 2 RAW files (.cr3, .arw), 2 other files (.xmp, .mov)"
    )
    assert Passed().told() == ""
