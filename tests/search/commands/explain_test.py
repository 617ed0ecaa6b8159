"""--mode=explain: a picture of the parts of a similarity."""

import pytest
from PIL import Image

from tests.helpers import steps, tiny
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_search.commands.explain import explain


def test_draws_and_prints_the_parts(tiny_config, tmp_path, capsys):
    tiny.draw("red", "bar", "left").save(tmp_path / "bar.png")
    workdir = write_run(tiny_config, tmp_path / "run")
    tiny_config.search.update(query="a red bar", like=str(tmp_path / "bar.png"))
    explain(tiny_config, workdir)
    first, methods, *words, path = capsys.readouterr().out.splitlines()
    assert methods == "cells: exact; words: exact"
    similarity = float(first.removeprefix("similarity "))
    assert abs(sum(float(line.split()[0]) for line in words) - similarity) < 0.005
    assert [line.split()[1] for line in words] == ["[CLS]", "a", "red", "bar", "[SEP]"]
    with Image.open(path) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("query", "like", "message"),
    [
        (None, "a.png", r"config\.search\.query: needed by --mode=explain"),
        (" ", "a.png", r"config\.search\.query: needed"),
        ("a bar", None, r"config\.search\.like: needed by --mode=explain"),
        ("a bar", "a.png", r"a\.png: no such image"),
        ("'a bar' - 'red'", "a.png", r"config\.search\.query: .* takes one caption"),
        ("-‘red’", "a.png", r"config\.search\.query: .* takes one caption"),
        ("b.png", "a.png", r"config\.search\.query: .* takes one caption"),
        ("a bar -red", "a.png", "query, column 7: '-' before a word without quotes"),
    ],
)
def test_missing_input_is_named(query, like, message, tiny_config, tmp_path):
    tiny_config.search.update(query=query, like=like)
    with pytest.raises(InputError, match=message):
        explain(tiny_config, tmp_path)


def test_a_region_model_has_no_cells(tiny_root, tmp_path):
    config = steps.region_config()
    config.data.root = str(tiny_root)
    picture = tmp_path / "bar.png"
    tiny.draw("red", "bar", "left").save(picture)
    workdir = write_run(config, tmp_path / "run")
    config.search.update(query="a red bar", like=str(picture))
    with pytest.raises(InputError, match="a region model, which sees no cells"):
        explain(config, workdir)
