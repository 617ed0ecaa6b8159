"""--mode=index: what it makes, tells and refuses."""

import shutil

import numpy as np
import pytest

import vse_jax
from tests.helpers.encoder import StandIn
from tests.helpers.runs import write_run
from tests.search.indexing_test import check_vectors, draw
from vse_jax.base.errors import InputError
from vse_search.commands.index import index
from vse_search.store import Store


@pytest.fixture
def config(tiny_config, tmp_path, monkeypatch):
    """Of a run in tmp_path with a stand-in for its model, and two pictures."""
    monkeypatch.setattr("vse_jax.api.model_of", lambda *_: StandIn())
    for number in range(2):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    tiny_config.search.pictures = str(tmp_path / "pictures")
    return tiny_config


def test_makes_an_index_and_says_what_it_did(config, tmp_path, capsys):
    (tmp_path / "pictures" / "text.jpg").write_text("no picture")

    index(config, tmp_path)

    bad, summary = capsys.readouterr().out.splitlines()
    assert bad.startswith("left out: text.jpg: not a readable image")
    place = tmp_path / "index"
    assert summary.startswith(f"{place}: 2 images (2 added, 1 bad) in ")
    with Store.open(place, read_only=True) as store:
        assert check_vectors(store) == {"0.png": 1, "1.png": 2}


def test_an_update_needs_no_folder(config, tmp_path, capsys):
    index(config, tmp_path)
    draw(tmp_path / "pictures" / "2.png", 2)
    config.search.pictures = None
    index(config, tmp_path)
    assert ": 3 images (1 added) in " in capsys.readouterr().out


def test_a_folder_may_move(config, tmp_path, capsys):
    index(config, tmp_path)
    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    config.search.pictures = str(tmp_path / "moved")
    index(config, tmp_path)
    assert ": 2 images (no change) in " in capsys.readouterr().out


def test_a_folder_that_is_away_is_not_given_up_for_another_one(config, tmp_path):
    index(config, tmp_path)
    shutil.move(tmp_path / "pictures", tmp_path / "away")
    for number in range(5, 9):
        draw(tmp_path / "others" / f"{number}.png", number)
    config.search.pictures = str(tmp_path / "others")

    with pytest.raises(InputError, match="would lose 2 of its 2 images"):
        index(config, tmp_path)

    with Store.open(tmp_path / "index", read_only=True) as store:
        assert store.folder == tmp_path / "pictures"
        assert store.count() == 2


def told(config, tmp_path, capsys, **fields) -> list[str]:
    """What an update says."""
    config.search.update(fields)
    index(config, tmp_path)
    return capsys.readouterr().out.splitlines()


def test_patterns_last_until_others_are_given(config, tmp_path, capsys):
    for number in range(2, 5):
        draw(tmp_path / "pictures" / "private" / f"{number}.png", number)
    (summary,) = told(config, tmp_path, capsys, exclude=("private/",))
    assert ": 2 images (2 added) in " in summary
    assert summary.endswith("; passed over: 1 excluded")

    (summary,) = told(config, tmp_path, capsys, exclude=None, pictures=None)
    assert ": 2 images (no change) in " in summary

    unmet, summary = told(config, tmp_path, capsys, exclude=("*.gif",))
    assert unmet == "config.search.exclude: '*.gif' leaves nothing out"
    assert ": 5 images (3 added) in " in summary
    assert told(config, tmp_path, capsys, exclude=None)[0] == unmet
    assert len(told(config, tmp_path, capsys, exclude=())) == 1


def test_what_was_passed_over_is_told(config, tmp_path, capsys):
    for name in ("a.nef", "b.mp4", "c.mp4", "d.txt"):
        (tmp_path / "pictures" / name).touch()
    (tmp_path / "pictures" / "link.jpg").symlink_to("0.png")
    (summary,) = told(config, tmp_path, capsys)
    passed = "1 symbolic link, 1 RAW file (.nef), 3 other files (.mp4, .txt)"
    assert summary.endswith(f"; passed over: {passed}")


def test_a_flag_lets_more_than_a_tenth_go(config, tmp_path, capsys):
    index(config, tmp_path)
    draw(tmp_path / "pictures" / "b" / "2.png", 2)
    index(config, tmp_path)
    shutil.rmtree(tmp_path / "pictures" / "b")
    capsys.readouterr()
    with pytest.raises(InputError, match="would lose 1 of its 3 images"):
        index(config, tmp_path)
    (summary,) = told(config, tmp_path, capsys, forget=True)
    assert ": 2 images (1 removed) in " in summary


def other_folder(config, tmp_path):
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    config.search.pictures = str(tmp_path / "others")


def other_model(config, tmp_path):
    vse_jax.api.model_of = lambda *_: StandIn("another")  # monkeypatch brings it back


def region_model(config, tmp_path):
    model = StandIn()
    model.takes_regions = True
    vse_jax.api.model_of = lambda *_: model


def no_folder(config, tmp_path):
    config.search.pictures = str(tmp_path / "nowhere")


def empty_folder(config, tmp_path):
    shutil.rmtree(tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()


def unnamed_folder(config, tmp_path):
    config.search.pictures, config.search.index = None, str(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_folder, "name another --config.search.index for another folder"),
        (
            other_model,
            "index of another model ('stand-in', not 'another' as it is now)",
        ),
        (region_model, "a region model takes features of regions"),
        (no_folder, "nowhere: no such folder of images"),
        (empty_folder, "pictures: no images in this folder"),
        (unnamed_folder, "config.search.pictures: needed to make an index"),
    ],
)
def test_what_it_refuses_leaves_the_index_as_it_was(config, tmp_path, change, message):
    index(config, tmp_path)
    change(config, tmp_path)

    with pytest.raises(InputError) as error:
        index(config, tmp_path)

    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with Store.open(tmp_path / "index", read_only=True) as store:
        assert store.count() == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", [no_folder, empty_folder])
def test_nothing_is_made_without_pictures(config, tmp_path, change):
    change(config, tmp_path)
    with pytest.raises(InputError):
        index(config, tmp_path)
    assert not (tmp_path / "index").exists()


def test_the_vectors_are_the_models(tiny_config, tiny_root, tmp_path):
    run = write_run(tiny_config, tmp_path / "run")
    tiny_config.search.pictures = str(tiny_root / "images")

    index(tiny_config, run)

    with Store.open(run / "index", read_only=True) as store:
        snapshot = store.snapshot()
        known = store.images()
        paths = [store.folder / known[id].file for id in snapshot.ids.tolist()]
    expected = vse_jax.load(run).encode_images(paths)
    np.testing.assert_allclose(snapshot.matrix[snapshot.rows], expected, atol=1e-6)
