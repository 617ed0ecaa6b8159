"""The index on disk: what it keeps, tells, refuses and survives."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.indices import new
from vse_jax.base.errors import InputError
from vse_jax.search.engine import Filters
from vse_jax.search.store import File, Store


def vectors(count: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(2, "f")


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
        row = store.picture(1)
        assert (row.path, row.copies, row.bytes) == ("a.jpg", ["x/copy.jpg"], 10)
        assert (row.width, row.height, row.camera) == (4, 3, "Canon")
        assert row.taken == "2019-05-01T23:59:59"
        assert [row.id for row in store.pictures()] == [1, 2, 3, 4]
        assert next(store.pictures()) == row
        assert store.copies(1) == ["x/copy.jpg"]
        assert store.path(1, "x") == "x/copy.jpg"
        assert store.vector(3).tolist() == [3, 3]
        assert store.picture(9) is store.vector(9) is store.path(9) is None


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
        ({"camera": "Leica"}, "camera: no picture has 'Leica'; there is Canon, Nikon"),
        ({"folder": "y"}, "folder: no picture has 'y'; there is x, x/y, x0"),
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
        assert store.picture(4) is None
        assert store.picture(5).path == "e.jpg"
        assert store.vector(5).tolist() == [9, 9]


def test_a_picture_goes_with_its_last_file(index):
    with Store.open(index, read_only=False) as store:
        store.forget(["a.jpg"])
        assert store.picture(1).path == "x/copy.jpg"
        store.forget(["x/copy.jpg"])
        assert store.picture(1) is None
        assert store.count() == 3
        assert store.snapshot().ids.tolist() == [2, 3, 4]


def test_what_a_killed_writer_left_is_overwritten(index):
    with (index / "vectors-1.f32").open("ab") as file:
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
    assert [path.name for path in index.glob("*.f32")] == ["vectors-2.f32"]


def test_one_writer_at_a_time(index):
    with (
        Store.open(index, read_only=False),
        pytest.raises(
            InputError, match=r"another process \(\d+\) writes to this index"
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
    with (index / "vectors-1.f32").open("r+b") as file:
        file.truncate(12)


def lose_vectors(index):
    (index / "vectors-1.f32").unlink()


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
    monkeypatch.setattr("vse_jax.search.store._LAYOUT", 2)
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
    monkeypatch.setattr("vse_jax.search.store._SCHEMA", "CREATE TABLE half (x); wrong")
    with pytest.raises(Exception, match="syntax error"):
        Store.create(tmp_path / "i", model="m", name="n", dim=2, folder=tmp_path)
    assert not list((tmp_path / "i").iterdir())
