"""The index on disk: what it keeps, tells, refuses and survives."""

import contextlib
import os
import shutil
import sqlite3
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.indices import new
from tests.helpers.users import folder_of_everybody, ordinary_user
from vse_jax.base.errors import InputError
from vse_search.store import File, Filters, Store


def vectors(count: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(2, "f")


def vector_file(index: Path) -> Path:
    """The only one."""
    (path,) = index.glob("vectors-*.f32")
    return path


@pytest.fixture
def index(tmp_path) -> Path:
    """Of four pictures in three folders; a.jpg and x/copy.jpg are equal."""
    path = tmp_path / "index"
    Store.create(path, model="m", name="model", dim=2, folder=tmp_path)
    with Store.open(path, read_only=False) as store:
        pictures = [
            new("a.jpg", "A", "2019-05-01T23:59:59", "Canon"),
            new("x/b.jpg", "B", "2020-01-01T00:00:00", "Nikon"),
            new("x/y/c.jpg", "C"),
            new("x0/d.jpg", "D", "2021-01-01T00:00:00"),
        ]
        store.add(pictures, vectors(4))
        store.link([File("x/copy.jpg", 10, 5, "A")])
    return path


def test_it_tells_what_it_knows(index, tmp_path):
    with Store.open(index, read_only=True) as store:
        assert (store.model, store.model_name, store.dim) == ("m", "model", 2)
        assert store.folder == tmp_path
        assert store.count() == 4
        assert store.cameras() == ["Canon", "Nikon"]
        assert store.folders() == ["x", "x/y", "x0"]
        assert store.dates() == ("2019-05-01", "2021-01-01")
        row = store.image(1)
        assert (row.path, row.copies, row.bytes) == ("a.jpg", ["x/copy.jpg"], 10)
        assert (row.width, row.height, row.camera) == (4, 3, "Canon")
        assert row.taken == "2019-05-01T23:59:59"
        assert list(store.images()) == [1, 2, 3, 4]
        assert store.images()[1] == row
        assert store.images([9, 3, 1]).keys() == {1, 3}
        assert [r.path for r in store.images([1, 4], "x").values()] == ["x/copy.jpg"]
        assert store.vector(3).tolist() == [3, 3]
        assert store.image(9) is store.vector(9) is None


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, [1, 2, 3, 4]),
        ({"after": "2019-05-01"}, [1, 2, 4]),
        ({"after": "2019-05-02"}, [2, 4]),
        ({"before": "2019-04-30"}, []),
        ({"before": "2019-05-01"}, [1]),
        ({"after": "2019-12-01", "before": "2020-12-01"}, [2]),
        ({"camera": "canon"}, [1]),
        ({"folder": "x"}, [1, 2, 3]),
        ({"folder": "./x/y/".removeprefix("./")}, [3]),
        ({"folder": "."}, [1, 2, 3, 4]),
        ({"folder": "x", "camera": "Nikon", "after": "2030-01-01"}, []),
    ],
)
def test_filters(index, filters, ids):
    with Store.open(index, read_only=True) as store:
        assert store.matching(Filters(**filters)).tolist() == ids


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"camera": "Leica"}, "camera: no image has 'Leica'; there is Canon, Nikon"),
        ({"folder": "y"}, "folder: no image has 'y'; there is x, x/y, x0"),
    ],
)
def test_unknown_names_are_named(index, filters, message):
    with Store.open(index, read_only=True) as store, pytest.raises(InputError) as error:
        store.matching(Filters(**filters))
    assert str(error.value) == message


@pytest.mark.parametrize("day", ["2019", "2019-13-01", "20190501", "soon"])
def test_what_is_no_day_is_named(day):
    with pytest.raises(InputError, match=f"after: '{day}' is no day"):
        Filters(after=day)


def test_ids_are_never_used_twice(index):
    with Store.open(index, read_only=False) as store:
        store.forget(["x0/d.jpg"])
        store.add([new("e.jpg")], vectors(1, 9))
        assert store.image(4) is None
        assert store.image(5).path == "e.jpg"
        assert store.vector(5).tolist() == [9, 9]


def test_a_picture_goes_with_its_last_file(index):
    with Store.open(index, read_only=False) as store:
        store.forget(["a.jpg"])
        assert store.image(1).path == "x/copy.jpg"
        store.forget(["x/copy.jpg"])
        assert store.image(1) is None
        assert store.count() == 3
        assert store.snapshot().ids.tolist() == [2, 3, 4]


def test_what_a_killed_writer_left_is_overwritten(index):
    with vector_file(index).open("ab") as file:
        file.write(b"leftover")
    (index / "vectors-9.f32").touch()

    with Store.open(index, read_only=False) as store:
        store.add([new("e.jpg")], vectors(1, 9))
        np.testing.assert_array_equal(store.snapshot().matrix[:, 0], [1, 2, 3, 4, 9])
    assert not (index / "vectors-9.f32").exists()


def test_readers_see_each_change_and_keep_what_they_have(index):
    with (
        Store.open(index, read_only=False) as writer,
        Store.open(index, read_only=True) as reader,
    ):
        version, before = reader.version(), reader.snapshot()
        writer.add([new("e.jpg")], vectors(1, 9))
        assert reader.version() > version
        assert len(before.ids) == 4
        assert reader.snapshot().ids.tolist() == [1, 2, 3, 4, 5]


def test_a_snapshot_goes_on_from_an_earlier_one(index):
    with Store.open(index, read_only=False) as store:
        snapshot = store.snapshot()

        def check(ids):
            nonlocal snapshot
            snapshot = store.snapshot(snapshot)
            assert snapshot.version == store.version()
            assert snapshot.ids.tolist() == ids
            assert snapshot.matrix[snapshot.rows, 0].tolist() == ids

        store.add([new("e.jpg"), new("f.jpg")], vectors(2, 5))
        check([1, 2, 3, 4, 5, 6])
        store.forget(["x/b.jpg"])
        check([1, 3, 4, 5, 6])
        store.add([new("g.jpg")], vectors(1, 7))
        check([1, 3, 4, 5, 6, 7])
        store.forget([f"{n}.png" for n in range(9)])  # none of these
        store.add([new(f"{n}.png") for n in range(2000)], vectors(2000, 8))
        store.forget([f"{n}.png" for n in range(2000)])
        store.compact()
        check([1, 3, 4, 5, 6, 7])


def test_many_holes_are_closed(index):
    with Store.open(index, read_only=False) as store:
        store.add([new(f"{n}.png") for n in range(2000)], vectors(2000, 5))
        old = store.snapshot()
        store.forget([f"{n}.png" for n in range(1600)])
        store.compact()

        now = store.snapshot()
        assert now.matrix.shape == (404, 2)
        assert now.rows.tolist() == list(range(404))
        np.testing.assert_array_equal(now.matrix[:, 0], now.ids)
        np.testing.assert_array_equal(old.matrix[:, 0], old.ids)
        store.compact()  # nothing to do
    with Store.open(index, read_only=False) as store:
        assert store.snapshot().matrix.shape == (404, 2)
    assert vector_file(index).stat().st_size == 404 * 2 * 4


def test_one_writer_at_a_time(index):
    with (
        Store.open(index, read_only=False),
        pytest.raises(
            InputError, match=r"another process \(pid \d+ on .*\) writes to this index"
        ),
        Store.open(index, read_only=False),
    ):
        pass


def damage_database(index):
    (index / "index.sqlite").write_bytes(b"no database" * 1000)


def damage_page(index):
    content = bytearray((index / "index.sqlite").read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    (index / "index.sqlite").write_bytes(content)


def empty_database(index):
    (index / "index.sqlite").write_bytes(b"")


def cut_vectors(index):
    with vector_file(index).open("r+b") as file:
        file.truncate(12)


def lose_vectors(index):
    vector_file(index).unlink()


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    "damage", [damage_database, damage_page, empty_database, cut_vectors, lose_vectors]
)
def test_a_broken_index_says_how_to_rebuild(index, damage, read_only):
    damage(index)
    before = {path: path.read_bytes() for path in index.glob("*[!wk]")}

    with pytest.raises(InputError) as error, Store.open(index, read_only=read_only):
        pass

    message = str(error.value)
    assert message.startswith(f"{index}/")
    assert f"remove the folder {index} and run --mode=index again" in message
    assert "\n" not in message
    assert before.items() <= {p: p.read_bytes() for p in index.glob("*")}.items()


def test_a_full_disk_is_no_broken_index(index):
    with Store.open(index, read_only=False) as store:
        [(pages,)] = store._all("PRAGMA page_count")
        store._all(f"PRAGMA max_page_count = {pages}")
        pictures = [new(f"{n}.jpg", f"content {n}") for n in range(1000)]
        with pytest.raises(InputError) as error:
            store.add(pictures, vectors(1000))
    assert str(error.value) == f"{index}/index.sqlite: database or disk is full"
    with Store.open(index, read_only=True) as store:
        assert store.count() == 4


def test_another_layout_is_refused(index, monkeypatch):
    monkeypatch.setattr("vse_search.store._LAYOUT", 99)
    with (
        pytest.raises(InputError, match="of another version of this program"),
        Store.open(index, read_only=True),
    ):
        pass


def test_no_index_is_said(tmp_path):
    with (
        pytest.raises(InputError, match="no index; make one with --mode=index"),
        Store.open(tmp_path, read_only=True),
    ):
        pass


def test_an_index_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("vse_search.store._SCHEMA", "CREATE TABLE half (x); wrong")
    with pytest.raises(Exception, match="syntax error"):
        Store.create(tmp_path / "i", model="m", name="n", dim=2, folder=tmp_path)
    assert not list((tmp_path / "i").iterdir())


# ---- Another index in its place, and readers who may only read ----------------------


def make_another(index: Path, model: str = "m", count: int = 2) -> None:
    """Removes the index, and makes another one in its place."""
    shutil.rmtree(index)
    Store.create(index, model=model, name="model", dim=2, folder=index / "elsewhere")
    with Store.open(index, read_only=False) as store:
        names = [f"other{n}.jpg" for n in range(count)]
        store.add([new(name) for name in names], vectors(count, 70))


@pytest.mark.parametrize("count", [2, 4, 7])
def test_a_reader_follows_an_index_that_was_made_anew(index, count):
    with Store.open(index, read_only=True) as store:
        old, uid = store.snapshot(), store.uid
        make_another(index, count=count)

        assert store.version() > old.version
        assert store.uid != uid
        assert store.folder == index / "elsewhere"
        assert store.image(1).path == "other0.jpg"
        assert store.vector(1).tolist() == [70, 70]
        now = store.snapshot(old)
        assert now.ids.tolist() == list(range(1, count + 1))
        assert now.matrix[now.rows, 0].tolist() == list(range(70, 70 + count))
        # What an engine has not yet let go of stays whole: old ids, old names.
        assert old.matrix[old.rows, 0].tolist() == [1, 2, 3, 4]
        assert store.images([1, 2], of=old)[2].path == "x/b.jpg"
        assert store.matching(Filters(folder="x"), of=old).tolist() == [1, 2, 3]


def test_an_index_of_another_model_in_its_place_is_said(index):
    with Store.open(index, read_only=True) as store:
        make_another(index, model="another")
        with pytest.raises(InputError) as error:
            store.snapshot()
        assert str(error.value) == (
            f"{index}: is the index of another model now ('model'); start this program "
            "again"
        )
        make_another(index)
        assert store.count() == 2


def test_an_index_that_has_gone_is_said_until_it_is_back(index):
    with Store.open(index, read_only=True) as store:
        index.rename(index.with_name("away"))
        with pytest.raises(
            InputError, match=r"/index: no index; make one with --mode="
        ):
            store.version()
        index.with_name("away").rename(index)
        assert store.count() == 4


def test_a_writer_does_not_write_to_another_index(index):
    with Store.open(index, read_only=False) as store:
        shutil.move(index, index.with_name("away"))
        Store.create(index, model="m", name="model", dim=2, folder=index)
        with pytest.raises(InputError, match="another index has taken the place"):
            store.add([new("e.jpg")], vectors(1))
    with Store.open(index, read_only=True) as store:
        assert store.count() == 0
    assert not list(index.glob("vectors-*"))


def test_a_reader_sees_that_the_folder_moved(index, tmp_path):
    with (
        Store.open(index, read_only=True) as reader,
        Store.open(index, read_only=False) as writer,
    ):
        version = reader.version()
        writer.move(tmp_path / "moved")
        assert reader.folder == tmp_path / "moved"
        assert reader.version() > version


def test_reading_goes_on_while_holes_are_closed(index):
    ended, seen = threading.Event(), []

    def read() -> None:
        with Store.open(index, read_only=True) as reader:
            snapshot = None
            while not ended.is_set():
                snapshot = reader.snapshot(snapshot)
                some = snapshot.ids <= 4
                seen.append(snapshot.matrix[snapshot.rows[some], 0].tolist())
                seen.append([reader.vector(id)[0] for id in (1, 2, 3, 4)])

    names = [f"{n}.png" for n in range(2000)]
    with ThreadPoolExecutor(2) as threads:
        reading = [threads.submit(read) for _ in range(2)]
        try:
            for _ in range(4):  # each opening removes the file that was left
                with Store.open(index, read_only=False) as store:
                    store.add([new(name) for name in names], vectors(2000, 5))
                    store.forget(names)
                    store.compact()
        finally:
            ended.set()
        for each in reading:
            each.result()
    assert seen
    assert all(values == [1, 2, 3, 4] for values in seen)


def test_an_index_can_be_read_where_nothing_may_be_written():
    with folder_of_everybody() as folder:
        path = folder / "index"
        Store.create(path, model="m", name="model", dim=2, folder=folder)
        with Store.open(path, read_only=False) as store:
            store.add([new("a.jpg")], vectors(1))
        assert {file.suffix for file in path.iterdir()} <= {".sqlite", ".f32", ""}
        path.chmod(0o555)
        for file in path.iterdir():
            file.chmod(0o444)
        (folder / "own").mkdir()
        with (
            ordinary_user(folder / "own"),
            Store.open(path, read_only=True) as store,
        ):
            assert store.image(1).path == "a.jpg"
            assert store.snapshot().matrix.tolist() == [[1, 1]]
        path.chmod(0o755)


def test_names_of_any_bytes_are_kept_and_can_be_shown(tmp_path):
    folder = tmp_path / os.fsdecode(b"pictures \xe9")
    folder.mkdir()
    path = tmp_path / "index"
    Store.create(path, model="m", name="n", dim=2, folder=folder)
    names = [
        os.fsdecode(b"\xff/a.jpg"),
        os.fsdecode(b"\xfe/a.jpg"),
        "line\nbreak.jpg",
        "back\\slash.jpg",
        unicodedata.normalize("NFC", "é/café.jpg"),
        unicodedata.normalize("NFD", "é/café.jpg"),
    ]
    with Store.open(path, read_only=False) as store:
        pictures = [new(name, str(n)) for n, name in enumerate(names)]
        store.add(pictures, vectors(len(names)))
        assert store.folder == folder
        assert store.files().keys() == set(names)
        assert [store.image(id).file for id in range(1, 7)] == names
        assert [store.image(id).path for id in range(1, 7)] == [
            "\\xff/a.jpg",
            "\\xfe/a.jpg",
            "line\\nbreak.jpg",
            "back\\slash.jpg",
            "é/café.jpg",
            "é/café.jpg",
        ]
        for typed in ("é", unicodedata.normalize("NFD", "é")):
            assert store.matching(Filters(folder=typed)).tolist() == [5, 6]
        for typed in ("\\xfe", "\udcfe"):
            assert store.matching(Filters(folder=typed)).tolist() == [2]
        store.forget([names[0], names[4]])
        assert store.files().keys() == set(names) - {names[0], names[4]}


@pytest.mark.parametrize("modified", [2**63, -(2**63) - 1, 13_569_465_600 * 10**9, -1])
def test_times_of_any_size_are_kept(index, modified):
    with Store.open(index, read_only=False) as store:
        store.link([File("x/copy.jpg", 2**63 - 1, modified, "A")])
        assert store.files()["x/copy.jpg"] == File(
            "x/copy.jpg", 2**63 - 1, modified, "A"
        )


def leave_half_a_transaction(index: Path) -> None:
    """As a writer that is killed while it writes to the database."""
    copy = index.with_name("copy")
    with contextlib.closing(sqlite3.connect(index / "index.sqlite")) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE pictures SET camera = 'half'")
        connection.execute("CREATE TABLE filler (x)")
        rows = ((bytes(1000),) for _ in range(1000))
        connection.executemany("INSERT INTO filler VALUES (?)", rows)
        shutil.copytree(index, copy)
        connection.rollback()
    shutil.rmtree(index)
    copy.rename(index)
    assert (index / "index.sqlite-journal").exists()


def test_a_reader_undoes_what_a_killed_writer_had_begun(index):
    leave_half_a_transaction(index)
    with Store.open(index, read_only=True) as store:
        assert store.cameras() == ["Canon", "Nikon"]


def test_where_it_cannot_be_undone_it_is_said(index):
    leave_half_a_transaction(index)
    with folder_of_everybody() as folder:
        path = Path(shutil.copytree(index, folder / "index"))
        path.chmod(0o555)
        for file in path.iterdir():
            file.chmod(0o444)
        (folder / "own").mkdir()
        with (
            ordinary_user(folder / "own"),
            pytest.raises(InputError) as error,
            Store.open(path, read_only=True),
        ):
            pass
        path.chmod(0o755)
    assert str(error.value) == (
        f"{path}/index.sqlite: its last update was killed, and nothing may be written "
        "here; run --mode=index where it may"
    )


@pytest.mark.parametrize("name", ["index.sqlite", "vectors"])
def test_a_file_that_may_not_be_read_is_no_broken_index(name):
    with folder_of_everybody() as folder:
        path = folder / "index"
        Store.create(path, model="m", name="model", dim=2, folder=folder)
        with Store.open(path, read_only=False) as store:
            store.add([new("a.jpg")], vectors(1))
        file = vector_file(path) if name == "vectors" else path / name
        file.chmod(0o000)
        (folder / "own").mkdir()
        with (
            ordinary_user(folder / "own"),
            pytest.raises(InputError) as error,
            Store.open(path, read_only=True),
        ):
            pass
    reason = {"index.sqlite": "unable to open database file"}
    assert str(error.value) == f"{file}: {reason.get(name, 'Permission denied')}"
