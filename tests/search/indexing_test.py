"""Updates: what is encoded, and what the index holds after them."""

import errno
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.encoder import StandIn
from tests.helpers.users import folder_of_everybody, ordinary_user
from tests.search.images_test import bomb
from vse_jax.base.errors import InputError
from vse_search import indexing
from vse_search.indexing import Report, update
from vse_search.store import Filters, Store

MODEL = StandIn()


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of three pictures."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "b.png", "x/c.png")):
        draw(folder / name, number)
    return folder


@pytest.fixture
def index(folder, tmp_path) -> Path:
    """Up to date."""
    path = tmp_path / "index"
    Store.create(path, model=MODEL.fingerprint, name="m", dim=MODEL.dim, folder=folder)
    assert run(path) == Report(added=3, encoded=3)
    return path


def run(index: Path, **options) -> Report:
    """An update, after which each picture must have its vector."""
    with Store.open(index, read_only=False) as store:
        report = update(store, MODEL, **options)
        check_vectors(store)
    return report


def check_vectors(store: Store) -> dict[str, int]:
    """Each picture's vector is that of each of its files; returns ids by path."""
    ids = {}
    snapshot = store.snapshot()
    for id, row in zip(snapshot.ids.tolist(), snapshot.rows, strict=True):
        picture = store.image(id)
        for path in (picture.file, *picture.copies):
            expected = MODEL.encode_images([store.folder / path])[0]
            assert (snapshot.matrix[row] == expected).all(), path
            ids[path] = id
    return ids


def ids(index: Path) -> dict[str, int]:
    with Store.open(index, read_only=True) as store:
        return check_vectors(store)


def test_nothing_is_encoded_twice(index, folder, monkeypatch):
    monkeypatch.setattr(indexing, "reading", None)
    assert run(index) == Report()
    (folder / "a.png").touch()  # another time, but no other content
    assert run(index) == Report()
    assert ids(index) == {"a.png": 1, "b.png": 2, "x/c.png": 3}


def test_new_changed_and_removed_files(index, folder):
    draw(folder / "d.png", 50)
    draw(folder / "a.png", 60)
    (folder / "b.png").unlink()

    report = run(index, forget=True)

    assert report == Report(added=1, changed=1, removed=1, encoded=2)
    assert ids(index) == {"x/c.png": 3, "a.png": 4, "d.png": 5}


def test_a_renamed_picture_keeps_its_id(index, folder, monkeypatch):
    monkeypatch.setattr(indexing, "reading", None)
    (folder / "y").mkdir()
    (folder / "b.png").rename(folder / "y/z.png")

    assert run(index) == Report(renamed=1)
    assert ids(index) == {"a.png": 1, "y/z.png": 2, "x/c.png": 3}


def test_two_files_may_swap_their_names(index, folder):
    (folder / "a.png").rename(folder / "t")
    (folder / "b.png").rename(folder / "a.png")
    (folder / "t").rename(folder / "b.png")
    assert run(index) == Report(changed=2)
    assert ids(index) == {"b.png": 1, "a.png": 2, "x/c.png": 3}


def test_duplicates_are_one_picture(index, folder):
    shutil.copy(folder / "a.png", folder / "x/a.png")  # of a known one
    draw(folder / "d.png", 50)
    shutil.copy(folder / "d.png", folder / "e.png")  # of a new one

    assert run(index) == Report(added=1, duplicates=2, encoded=1)

    found = ids(index)
    assert found["a.png"] == found["x/a.png"] == 1
    assert found["d.png"] == found["e.png"] == 4
    (folder / "a.png").unlink()
    assert run(index) == Report(removed=1)
    assert ids(index)["x/a.png"] == 1


def test_bad_files_are_listed_and_not_fatal(index, folder):
    (folder / "text.jpg").write_text("no picture")
    (folder / "bomb.png").write_bytes(bomb(100_000, 100_000))
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    os.truncate(folder / "cut.png", 400)
    shutil.copy(folder / "cut.png", folder / "cut2.png")
    os.close(os.open(bytes(folder) + b"/\xff.png", os.O_CREAT))
    draw(folder / "d.png", 50)

    report = run(index)

    bad = dict(report.bad)
    assert bad.pop("bomb.png").startswith("100,000 × 100,000 pixels are more than")
    assert bad.pop("text.jpg").startswith("not a readable image (cannot identify")
    assert bad.pop("\\xff.png").startswith("not a readable image")
    assert bad.pop("cut.png") == bad.pop("cut2.png") != ""
    assert not bad
    assert (report.added, report.encoded) == (1, 1)
    assert len(ids(index)) == 4


def test_a_file_that_is_spoiled_leaves_the_index(index, folder):
    (folder / "a.png").write_bytes(b"spoiled")
    report = run(index)
    assert [path for path, _ in report.bad] == ["a.png"]
    assert ids(index) == {"b.png": 2, "x/c.png": 3}


def test_excluded_pictures_leave_the_index(index):
    assert run(index, exclude=("x",)) == Report(removed=1)
    assert ids(index) == {"a.png": 1, "b.png": 2}


def test_small_batches(index, folder, monkeypatch):
    monkeypatch.setattr(indexing, "_AHEAD", 7)
    monkeypatch.setattr(indexing, "_LINKS", 2)
    for number in range(40):
        draw(folder / f"n{number}.png", 100 + number // 2)
    assert run(index, batch=3) == Report(added=20, duplicates=20, encoded=20)
    assert len(ids(index)) == 43


def test_a_batch_ends_when_its_model_fails(index, folder):
    class Failing(StandIn):
        def encode_images(self, pictures, **_):
            super().encode_images(pictures)
            raise ZeroDivisionError

    for number in range(9):
        draw(folder / f"n{number}.png", 100 + number)
    with Store.open(index, read_only=False) as store:
        with pytest.raises(ZeroDivisionError):
            update(store, Failing(), batch=2)
        assert store.count() == 3


class Meddling(StandIn):
    """A picture is written anew when it was hashed, and is just decoded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def prepare(self, pixels):
        draw(self.path, 51)
        return super().prepare(pixels)


def test_a_file_that_changes_meanwhile_is_what_was_read(index, folder):
    draw(folder / "d.png", 50)
    with Store.open(index, read_only=False) as store:
        report = update(store, Meddling(folder / "d.png"))
    assert report == Report(added=1, encoded=1)
    assert run(index) == Report(changed=1, encoded=1)


def test_a_large_file_that_changes_meanwhile_is_bad(index, folder, monkeypatch):
    monkeypatch.setattr(indexing, "_KEPT", 0)  # none waits in memory
    draw(folder / "d.png", 50)
    with Store.open(index, read_only=False) as store:
        report = update(store, Meddling(folder / "d.png"))
    assert report.bad == [("d.png", "changed while it was read")]
    assert run(index) == Report(added=1, encoded=1)


def test_each_file_is_read_once(index, folder, tmp_path):
    for number in range(40):
        draw(folder / f"n{number}.png", 100 + number)
    program = """if True:
        import collections, sys
        from pathlib import Path
        from tests.helpers.encoder import StandIn
        from vse_search.indexing import update
        from vse_search.store import Store
        opened = collections.Counter()
        def note(event, arguments):
            if event == "open" and "/n" in str(arguments[0]):
                opened[str(arguments[0])] += 1
        with Store.open(Path(sys.argv[1]), read_only=False) as store:
            sys.addaudithook(note)
            update(store, StandIn(), batch=4)
        print(len(opened), max(opened.values()))
    """
    command = [sys.executable, "-c", program, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["40", "1"]


def test_progress_counts_every_file(index, folder, capsys, monkeypatch):
    draw(folder / "d.png", 50)
    shutil.copy(folder / "d.png", folder / "e.png")
    shutil.copy(folder / "a.png", folder / "f.png")
    (folder / "text.jpg").write_text("no picture")
    counted = []

    def progress(items, *_):
        for item in items:
            counted.append(item)
            yield item

    monkeypatch.setattr(indexing, "progress", progress)
    run(index)
    assert len(counted) == 4


def test_an_index_of_another_model_is_refused(index):
    with (
        Store.open(index, read_only=False) as store,
        pytest.raises(InputError, match=r"index of another model \('m', not 'other'"),
    ):
        update(store, StandIn("other"))


def test_missing_and_empty_folders_are_refused_and_nothing_is_lost(index, folder):
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no such folder of images"):
        run(index)
    folder.mkdir()
    with pytest.raises(InputError, match="no images in this folder"):
        run(index)
    with Store.open(index, read_only=True) as store:
        assert store.count() == 3


# ---- What cannot be seen is not gone -------------------------------------------------


@contextmanager
def somebodys_index():
    """(index, folder) of a/1.png, a/2.png, b/3.png, b/4.png; permissions count."""
    with folder_of_everybody() as home:
        folder, index = home / "pictures", home / "index"
        for number in range(1, 5):
            draw(folder / f"{'ab'[number > 2]}/{number}.png", number)
        Store.create(
            index, model=MODEL.fingerprint, name="m", dim=MODEL.dim, folder=folder
        )
        run(index)
        with ordinary_user(home):
            yield index, folder


@pytest.mark.parametrize(
    ("rights", "bad"),
    [
        (0o000, [("b", "Permission denied")]),
        (0o444, [(f"b/{n}.png", "Permission denied") for n in (3, 4)]),
        (0o111, [("b", "Permission denied")]),
    ],
)
def test_pictures_of_an_unreadable_folder_stay(rights, bad):
    with somebodys_index() as (index, folder):
        (folder / "b").chmod(rights)
        with Store.open(index, read_only=False) as store:
            assert update(store, MODEL) == Report(unseen=2, bad=bad)
            assert store.count() == 4
        (folder / "b").chmod(0o755)
        assert run(index) == Report()


def test_an_unreadable_file_stays_as_it_was():
    with somebodys_index() as (index, folder):
        (folder / "b/3.png").touch()
        (folder / "b/3.png").chmod(0o000)
        draw(folder / "b/4.png", 40)
        draw(folder / "b/5.png", 50)
        (folder / "b/5.png").chmod(0o000)
        with Store.open(index, read_only=False) as store:
            report = update(store, MODEL)
            assert store.files().keys() == {"a/1.png", "a/2.png", "b/3.png", "b/4.png"}
        bad = [(f"b/{n}.png", "Permission denied") for n in (3, 5)]
        assert report == Report(changed=1, encoded=1, unseen=1, bad=bad)
        (folder / "b/3.png").chmod(0o644)
        (folder / "b/5.png").chmod(0o644)
        assert run(index) == Report(added=1, encoded=1)


@pytest.fixture
def listing(monkeypatch):
    """listing(name, …) hides these files; listing(folder=error) fails at its end."""
    scan = os.scandir

    def hide(*hidden: str, **failing: OSError) -> None:
        @contextmanager
        def scandir(folder):
            def entries():
                for entry in listed:
                    if entry.name not in hidden:
                        yield entry
                if error := failing.get(Path(folder).name):
                    raise error

            with scan(folder) as listed:
                yield entries()

        monkeypatch.setattr(os, "scandir", scandir)

    return hide


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_folder_that_fails_while_it_is_listed_loses_nothing(index, listing, number):
    listing(x=OSError(number, os.strerror(number)))
    with Store.open(index, read_only=False) as store:
        report = update(store, MODEL)
        assert store.count() == 3
    assert report == Report(unseen=1, bad=[("x", os.strerror(number))])


def test_a_file_that_is_there_but_not_listed_stays(index, listing):
    listing("b.png")
    reason = "is there, but its folder does not list it"
    assert run(index) == Report(unseen=1, bad=[("b.png", reason)])


def test_a_new_name_that_the_old_one_still_leads_to_is_a_renaming(
    index, folder, listing
):
    """As on systems where B.PNG is b.png."""
    os.link(folder / "b.png", folder / "B.PNG")
    listing("b.png")
    with Store.open(index, read_only=False) as store:
        assert update(store, MODEL) == Report(renamed=1)
        assert store.image(2).path == "B.PNG"


def test_pictures_of_a_disk_that_is_away_stay(index, folder):
    for number in range(30):
        draw(folder / f"n{number}.png", 100 + number)
    draw(folder / "usb/d.png", 50)
    run(index)
    with Store.open(index, read_only=False) as store:
        here = store.disks
        assert here.keys() == {"."}
        store.remember((), here | {"usb": "another disk", "gone": "a third one"})
    (folder / "usb/d.png").unlink()
    (folder / "b.png").unlink()
    with Store.open(index, read_only=False) as store:
        report = update(store, MODEL)
        assert store.matching(Filters(folder="usb")).tolist() != []
        assert store.disks == here | {"usb": "another disk"}
    ((path, reason),) = report.bad
    assert path == "usb"
    assert reason.startswith("is not on the disk that it was on, so its images stay")
    assert report == Report(removed=1, unseen=1, bad=[(path, reason)])
    (folder / "usb/d.png").write_bytes((folder / "a.png").read_bytes())
    assert run(index).unseen == 0  # all of them are seen: so this is its disk now
    with Store.open(index, read_only=False) as store:
        assert store.disks == here


def test_an_index_on_another_disk_than_before_loses_nothing_unasked(index, folder):
    (folder / "b.png").unlink()
    with Store.open(index, read_only=False) as store:
        store.remember((), {".": "another disk"})
        assert update(store, MODEL).unseen == 1
        assert store.count() == 3
    assert run(index, forget=True) == Report(removed=1)
    assert run(index) == Report()


def test_more_than_a_tenth_leaves_when_it_may(index, folder):
    for number in range(17):
        draw(folder / f"n{number}.png", 100 + number)
    draw(folder / "x/n0.png", 100)  # a copy
    run(index)
    for number in range(3):
        (folder / f"n{number}.png").unlink()
    assert run(index) == Report(removed=3)  # two pictures of twenty, and a copy's file
    draw(folder / "new.png", 300)
    (folder / "n3.png").unlink()
    (folder / "n4.png").unlink()
    with Store.open(index, read_only=False) as store:
        version = store.version()
        with pytest.raises(InputError) as error:
            update(store, MODEL, exclude=("x",))
        assert store.version() == version
    assert str(error.value) == (
        f"{folder}: the index would lose 2 of its 18 images, more than a tenth, for "
        "their files are gone; nothing was changed; --config.search.forget=True lets "
        "them go"
    )
    assert run(index, forget=True) == Report(added=1, removed=2, encoded=1)


def test_renaming_everything_loses_nothing(index, folder, monkeypatch):
    monkeypatch.setattr(indexing, "reading", None)
    (folder / "y").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(folder / f"y/{number}.png")
        (folder / f"y/{number}.png").touch()
    assert run(index) == Report(renamed=3)
    assert list(ids(index).values()) == [1, 2, 3]


def test_a_content_under_the_name_of_another_is_not_lost(index, folder):
    (folder / "a.png").rename(folder / "b.png")
    assert run(index) == Report(changed=1, removed=1)
    assert ids(index) == {"b.png": 1, "x/c.png": 3}


def test_a_link_in_the_place_of_a_folder_is_seen(index, folder, tmp_path):
    shutil.move(folder / "x", tmp_path / "elsewhere")
    (folder / "x").symlink_to(tmp_path / "elsewhere")
    assert run(index, forget=True) == Report(removed=1)


# ---- Whatever a file is called, and whatever is said of it ---------------------------


def test_names_of_any_bytes_are_indexed(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xf6lder")
    names = [os.fsdecode(b"caf\xe9/\xff.png"), "line\nbreak.png", "\x1b[31m.png"]
    for number, name in enumerate(names):
        draw(folder / name, number)
    index = tmp_path / "index"
    Store.create(index, model=MODEL.fingerprint, name="m", dim=MODEL.dim, folder=folder)
    assert run(index) == Report(added=3, encoded=3)
    assert run(index) == Report()
    with Store.open(index, read_only=True) as store:
        assert store.folder == folder
        assert store.folders() == ["caf\\xe9"]
        known = store.images()
        assert {row.file for row in known.values()} == set(names)
        assert store.matching(Filters(folder="caf\\xe9")).tolist() == [3]


def test_a_name_that_is_spelled_in_another_way_is_not_read_again():
    with somebodys_index() as (index, folder):
        draw(folder / unicodedata.normalize("NFC", "é/ü.png"), 50)
        assert run(index) == Report(added=1, encoded=1)
        with Store.open(index, read_only=True) as store:
            ((id, row),) = store.images(folder="é").items()
        (folder / unicodedata.normalize("NFC", "é")).rename(
            folder / unicodedata.normalize("NFD", "é")
        )
        other = folder / unicodedata.normalize("NFD", "é")
        (other / row.file.rpartition("/")[2]).rename(
            other / unicodedata.normalize("NFD", "ü.png")
        )
        (other / unicodedata.normalize("NFD", "ü.png")).chmod(0o000)
        with Store.open(index, read_only=False) as store:
            assert update(store, MODEL) == Report(renamed=1)
            for typed in ("NFC", "NFD"):
                filters = Filters(folder=unicodedata.normalize(typed, "é"))
                assert store.matching(filters).tolist() == [id]
            assert store.image(id).file == unicodedata.normalize("NFD", row.file)


@pytest.mark.parametrize("year", [1, 1902, 2400])
def test_times_beyond_64_bits_are_indexed(index, folder, year):
    seconds = (year - 1970) * 31_556_952
    os.utime(folder / "a.png", ns=(0, seconds * 10**9))
    if (folder / "a.png").stat().st_mtime_ns != seconds * 10**9:
        seconds = None  # this file system has no such time, and keeps another one
    draw(folder / "d.png", 50)
    assert run(index) == Report(added=1, encoded=1)
    assert run(index) == Report()
    with Store.open(index, read_only=True) as store:
        known = store.files()["a.png"].modified
    assert known == (folder / "a.png").stat().st_mtime_ns


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError("maximum depth"),
        OverflowError("too large"),
        struct.error("unpack requires\n4 bytes"),
        SyntaxError("not a TIFF file"),
        ValueError("embedded null byte"),
        KeyError("tag"),
    ],
)
def test_no_error_of_a_decoder_ends_an_update(index, folder, monkeypatch, error):
    draw(folder / "d.png", 50)
    draw(folder / "e.png", 51)
    read = indexing.reading

    def failing(content, *others):
        if content.name == "d.png":
            raise error
        return read(content, *others)

    monkeypatch.setattr(indexing, "reading", failing)
    report = run(index)
    ((path, reason),) = report.bad
    assert path == "d.png"
    assert type(error).__name__ in reason
    assert "\n" not in reason
    assert report == Report(added=1, encoded=1, bad=report.bad)


# ---- What is left out ----------------------------------------------------------------


def test_patterns_are_remembered_until_others_are_given(index, folder):
    draw(folder / "y/d.png", 50)
    assert run(index, exclude=("x/",)) == Report(added=1, removed=1, encoded=1)
    assert run(index) == Report()
    assert run(index, exclude=("y/",)) == Report(added=1, removed=1, encoded=1)
    assert run(index) == Report()
    assert run(index, exclude=()) == Report(added=1, encoded=1)


def test_a_pattern_that_leaves_nothing_out_is_told(index, folder):
    (folder / "x/film.mp4").touch()
    report = run(index, exclude=("x", "[", "y/", "#", "*.mp4", "!*.gif"))
    assert report.unmet == ["[", "y/", "#", "*.mp4", "!*.gif"]
    assert report.passed.told() == "1 excluded"


@pytest.mark.parametrize("pattern", ["!", "a\\", ""])
def test_what_is_no_pattern_is_refused(index, pattern):
    with pytest.raises(InputError, match=r"^config\.search\.exclude: .* is no pattern"):
        run(index, exclude=("x", pattern))
    assert run(index) == Report()


def test_what_was_passed_over_is_counted(index, folder):
    for name in ("a.NEF", "b.nef", "x/c.dng", "film.mp4", "x/film.mp4", "notes"):
        (folder / name).touch()
    (folder / ".hidden").touch()
    (folder / "link.jpg").symlink_to(folder / "a.png")
    report = run(index)
    assert report == Report()
    assert report.passed.told() == (
        "1 symbolic link, 3 RAW files (.nef, .dng), 3 other files (.mp4, no suffix)"
    )


def test_a_folder_without_pictures_says_what_it_has(index, folder):
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_suffix(".nef"))
    with pytest.raises(InputError) as error:
        run(index)
    line = "no images in this folder (passed over: 3 RAW files (.nef))"
    assert str(error.value) == f"{folder}: {line}"
