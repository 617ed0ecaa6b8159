"""--mode=search: what is printed, with a server of the index and without."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from tests.helpers import postgres, searching
from tests.helpers.drafts import draft
from tests.search.commands.serve_test import started
from vse_jax.base.errors import InputError
from vse_jax.config import save_config
from vse_search import client
from vse_search.commands.search import search
from vse_search.store import File, NewImage, Store

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=["alone", "through the server"])
def workdir(request, tmp_path_factory):
    """A run's folder with an index, which a server may serve."""
    folder = tmp_path_factory.mktemp("run")
    pictures = searching.draw_pictures(folder / "pictures")
    index = searching.make_index(pictures, folder / "index")
    if request.param == "alone":
        yield folder
        return
    with started(folder):
        assert client.running(index)
        yield folder


@pytest.fixture
def model(monkeypatch):
    """The model of the run; notes what it encodes."""
    model = searching.ColourModel()
    monkeypatch.setattr("vse_jax.api.model_of", lambda *_: model)
    nothing = contextlib.nullcontext()
    monkeypatch.setattr("vse_jax.distributed.runtime.started", lambda *_, **__: nothing)
    return model


@pytest.fixture
def find(workdir, model, capsys):
    """find(FIELD=…) → what is printed on stdout."""

    def run(**fields) -> str:
        config = draft()
        config.search.update(fields)
        search(config, workdir)
        return capsys.readouterr().out

    return run


def test_a_table_has_scores_and_paths(find, workdir):
    lines = find(query="a red car", top=2).splitlines()
    assert lines[:2] == [str(workdir / "pictures"), "score   path"]
    assert lines[2].split() == ["0.963", "red.jpg"]
    assert len(lines) == 4


def test_json_is_a_list_and_nothing_else(find, workdir):
    (hit,) = json.loads(find(query="red", format="json", top=1))
    assert hit.keys() == {"path", "score", "id"}
    assert hit["path"] == str(workdir / "pictures" / "red.jpg")
    assert hit["score"] > 0.9
    assert isinstance(hit["id"], int)
    assert json.loads(find(query="red", format="json", min_score=2.0)) == []


def test_paths_can_be_piped(find, workdir):
    lines = find(query="'blue'", format="paths", min_score=0.9).splitlines()
    names = ("blue.jpg", "trips/sea side.png")
    assert {*lines} == {str(workdir / "pictures" / name) for name in names}
    assert find(query="red", format="paths", min_score=2.0) == ""
    assert "no image found" in find(query="red", min_score=2.0)


def names(printed: str) -> list[str]:
    return [hit["path"].rpartition("/")[2] for hit in json.loads(printed)]


def test_pictures_are_parts_of_a_query(find, tmp_path):
    green = searching.draw(tmp_path / "a picture.png", "green")
    blue = searching.draw(tmp_path / "blue.png", "blue")
    assert names(find(like=str(green), format="json", top=1)) == ["green.jpg"]
    query = f"'red' - {blue} + 2.5*'{green}'"
    found = names(find(query=query, format="json"))
    assert found[:2] == ["green.jpg", "red.jpg"]
    assert {*found[-2:]} == {"blue.jpg", "sea side.png"}
    found = names(find(query="- 'green' + 'red'", like=str(green), format="json"))
    assert found[0] == "red.jpg"


def test_a_name_of_no_file_is_one_of_the_index(find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"format": "json", "top": 1}
    assert names(find(query="SEA SIDE.PNG", **fields)) == ["sea side.png"]
    assert names(find(query="'red' + 3*GREEN.JPG", **fields)) == ["green.jpg"]
    searching.draw(tmp_path / "blue.jpg", "green")
    assert names(find(query="blue.jpg", **fields)) == ["green.jpg"]
    searching.draw(tmp_path / "b - 'c'.jpg", "yellow")
    assert names(find(query="b - 'c'.jpg", **fields)) == ["yellow.jpg"]
    with pytest.raises(InputError, match=r"no such file, and no image of the index"):
        find(query="nowhere.jpg")


@pytest.fixture
def large(tmp_path):
    """A picture file that is larger than a server takes."""
    green = searching.draw(tmp_path / "large.jpg", "green")
    with green.open("ab") as file:
        file.truncate(21_000_000)
    return green


def test_what_a_server_refuses_is_searched_here(find, large, model):
    assert names(find(like=str(large), format="json", top=1)) == ["green.jpg"]
    assert names(find(query=f"'red' + 3*{large}", format="json", top=1)) == [
        "green.jpg"
    ]


def test_a_long_query_is_searched_with_and_without_a_server(find):
    query = "word " * 900 + "red"
    assert names(find(query=query, format="json", top=1)) == ["red.jpg"]
    with pytest.raises(InputError, match=r"^query: longer than 8,192 characters$"):
        find(query="x" * 8_193)


def test_an_answer_has_the_same_numbers_with_and_without_a_server(find):
    (hit,) = json.loads(find(query="a red car", format="json", top=1))
    assert hit["score"] == pytest.approx(0.963, abs=1e-3)
    assert hit["score"] == round(hit["score"], 6)


def test_postgres_finds_what_exact_search_finds(find):
    with postgres.server() as server:
        found = find(query="a red cat", engine="postgres", url=server.url)
    assert found == find(query="a red cat")


def test_a_server_of_another_engine_is_not_asked(find, model):
    find(query="a black dog", engine="approximate")
    assert model.sentences == ["a black dog"]


def test_a_server_that_hangs_is_not_waited_for(tmp_path, model, capsys, caplog):
    config = draft()
    config.search.update(query="a green car", format="json", top=1)
    with started(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
        with caplog.at_level("INFO", "absl"):
            search(config, tmp_path)
    assert names(capsys.readouterr().out) == ["green.jpg"]
    assert model.sentences == ["a green car"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "does not answer (in 2 s); searching without it" in line


def test_filters_choose_among_the_pictures(find):
    fields = {"query": "red", "format": "json"}
    assert names(find(**fields, folder="trips"))[0] == "red again.jpg"
    assert len(names(find(**fields, camera="Nikon D1"))) == 3
    assert names(find(**fields, after="2019-05-07")) == ["black.jpg"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, r"config\.search\.query"),
        ({"query": "..."}, "query: has no words"),
        ({"query": "'red' + "}, "query, column 9"),
        ({"query": "'red' - 'red'"}, "query: its parts cancel out"),
        ({"query": "red", "camera": "Box"}, "camera: no image has 'Box'"),
        ({"query": "red", "folder": "nowhere"}, "folder: no image has 'nowhere'"),
        ({"query": "red", "after": "2019-13-01"}, "after: '2019-13-01'"),
        ({"like": "missing.jpg"}, "missing.jpg: "),
        ({"like": "README.md"}, "README.md: "),
        ({"query": "red", "index": "/nowhere"}, "/nowhere: no index"),
    ],
)
def test_bad_input_is_one_line(find, fields, error):
    with pytest.raises(InputError, match=f"^{error}"):
        find(**fields)


def test_a_long_path_is_cut_on_a_terminal_only(workdir, model, capsys, monkeypatch):
    config = draft()
    config.search.update(query="blue", folder="trips")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    search(config, workdir)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert max(map(len, lines)) == 20
    assert lines[1:] == [" 0.995  …ea side.png", " 0.004  …d again.jpg"]


def test_more_than_a_server_gives_is_searched_here(find, model):
    find(query="a white car", top=5000)
    assert model.sentences == ["a white car"]


@pytest.mark.parametrize("served", [False, True])
def test_names_of_any_bytes_are_printed(tmp_path, model, capsysbinary, served):
    folder = tmp_path / "pictures"
    names = [os.fsdecode(b"b\xe9/red \xff.jpg"), "a\nred.jpg", "e\u0301/red.jpg"]
    for name in names:
        searching.draw(folder / name, "red")
    searching.make_index(folder, tmp_path / "index")

    def printed(**fields) -> bytes:
        config = draft()
        config.search.update(query="red", top=20, **fields)
        search(config, tmp_path)
        return capsysbinary.readouterr().out

    with contextlib.ExitStack() as stack:
        if served:
            stack.enter_context(started(tmp_path))
        table = printed().decode()
        for shown in ("b\\xe9/red \\xff.jpg", "a\\nred.jpg", "é/red.jpg"):
            assert f"  {shown}\n" in table
        hits = json.loads(printed(format="json"))
        assert {hit["path"] for hit in hits} >= {str(folder / name) for name in names}
        paths = printed(format="paths").splitlines()
        assert set(paths) >= {
            os.fsencode(folder) + b"/b\xe9/red \xff.jpg",
            os.fsencode(folder) + b"/a\\nred.jpg",
            os.fsencode(folder) + "/e\u0301/red.jpg".encode(),
        }
        (hit,) = json.loads(printed(format="json", folder="é"))
        assert hit["path"] == str(folder / "e\u0301/red.jpg")


def test_with_a_server_nothing_slow_is_loaded(tmp_path):
    with started(tmp_path):
        save_config(draft(), tmp_path / "config.json")
        arguments = [f"--workdir={tmp_path}", "--mode=search"]
        arguments += ["--config.search.query=red", "--config.search.format=json"]
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['main.py', *{arguments}]\n"
            "try: runpy.run_path('main.py', run_name='__main__')\n"
            "finally: assert not {'jax', 'flax', 'fastapi'} & sys.modules.keys()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
    assert done.returncode == 0, done.stderr
    assert names(done.stdout)[0] == "red.jpg"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("~/green.jpg", ["green.jpg"]),
        ("'~/trips/sea side.png' - 0.1 * 'red'", ["blue.jpg", "trips/sea side.png"]),
    ],
)
def test_a_picture_in_a_query_may_lie_in_the_home_folder(
    find, workdir, monkeypatch, query, names
):
    pictures = workdir / "pictures"
    monkeypatch.setenv("HOME", str(pictures))
    found = find(query=query, format="paths", top=len(names)).splitlines()
    assert sorted(found) == [str(pictures / name) for name in names]


def test_many_hits_are_not_compared_with_each_other(model, tmp_path, capsys):
    index, count = tmp_path / "index", 5000
    facts = {"model": model.fingerprint, "name": model.name, "dim": model.dim}
    Store.create(index, folder=tmp_path, **facts)
    names = [f"{number}.png" for number in range(count)]
    with Store.open(index, read_only=False) as store:
        files = [NewImage(File(n, 1, 1, n), 4, 3, None, None) for n in names]
        store.add(files, np.ones((count, model.dim), np.float32))
    config = draft()
    config.search.update(query="red", top=count, format="paths")
    tracemalloc.start()
    search(config, tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(capsys.readouterr().out.splitlines()) == count
    assert most < 4 * count**2


@pytest.mark.parametrize("served", [False, True])
def test_nothing_is_found_below_the_models_cut_off(
    tmp_path, model, capsys, caplog, served, monkeypatch
):
    monkeypatch.setattr(searching.ColourModel, "cutoff", 0.5)
    pictures = searching.draw_pictures(tmp_path / "pictures")
    searching.make_index(pictures, tmp_path / "index")

    def printed(**fields):
        caplog.clear()
        config = draft()
        config.search.update(format="json", **fields)
        with caplog.at_level("INFO", "absl"):
            search(config, tmp_path)
        return names(capsys.readouterr().out), caplog.text

    with contextlib.ExitStack() as stack:
        if served:
            stack.enter_context(started(tmp_path, "0", "0", "0.5"))
        found, told = printed(query="elephant")
        assert found == []
        assert "nothing found: no image scores at least 0.500, as this model" in told
        found, told = printed(query="elephant", min_score=-1.0)
        assert (len(found), told.count("scores")) == (8, 0)
        found, told = printed(query="red")
        assert found == ["red.jpg"]
        assert "no other image scores at least 0.500" in told
        assert "at least" not in printed(query="red", top=1)[1]
