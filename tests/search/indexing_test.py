"""Updates: what is encoded, and what the index holds after them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.encoder import StandIn
from tests.search.pictures_test import bomb
from vse_jax.base.errors import InputError
from vse_jax.search import indexing
from vse_jax.search.indexing import Report, update
from vse_jax.search.store import Store

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
        picture = store.picture(id)
        for path in (picture.path, *picture.copies):
            expected = MODEL.encode_images([store.folder / path])[0]
            assert (snapshot.matrix[row] == expected).all(), path
            ids[path] = id
    return ids


def ids(index: Path) -> dict[str, int]:
    with Store.open(index, read_only=True) as store:
        return check_vectors(store)


def test_nothing_is_encoded_twice(index, folder, monkeypatch):
    monkeypatch.setattr(indexing.pictures, "read_picture", None)
    assert run(index) == Report()
    (folder / "a.png").touch()  # another time, but no other content
    assert run(index) == Report()
    assert ids(index) == {"a.png": 1, "b.png": 2, "x/c.png": 3}


def test_new_changed_and_removed_files(index, folder):
    draw(folder / "d.png", 50)
    draw(folder / "a.png", 60)
    (folder / "b.png").unlink()

    report = run(index)

    assert report == Report(added=1, changed=1, removed=1, encoded=2)
    assert ids(index) == {"x/c.png": 3, "a.png": 4, "d.png": 5}


def test_a_renamed_picture_keeps_its_id(index, folder, monkeypatch):
    monkeypatch.setattr(indexing.pictures, "read_picture", None)
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
    assert bad.pop("text.jpg").startswith("not a readable picture (cannot identify")
    assert bad.pop("\\udcff.png") == "its name is not UTF-8"
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


def test_a_file_that_changes_meanwhile_is_bad(index, folder, monkeypatch):
    draw(folder / "d.png", 50)
    read = indexing._read

    def touched(folder, path):
        found = read(folder, path)
        draw(folder / path, 51)
        return found

    monkeypatch.setattr(indexing, "_read", touched)
    assert run(index).bad == [("d.png", "changed while it was read")]
    monkeypatch.undo()
    assert run(index) == Report(added=1, encoded=1)


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
    with pytest.raises(InputError, match="no such folder of pictures"):
        run(index)
    folder.mkdir()
    with pytest.raises(InputError, match="no pictures in this folder"):
        run(index)
    with Store.open(index, read_only=True) as store:
        assert store.count() == 3
