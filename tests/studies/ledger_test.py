"""The ledger of a study: what stands in it is found again, and of its recipe only."""

import dataclasses
import json

import pytest

from configs import openmoji_cells
from studies.ledger import Ledger, Result
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError

GPO = Result(
    variant="gpo",
    seed=0,
    changes={},
    dev=[300.0, 310.5],
    test=305.25,
    coefficients={"image": {"2": [0.75, 0.25]}, "text": None},
)
RULES = (("gpool/", 10.0, 0), (".*", 1.0, 0))


@pytest.fixture
def path(tmp_path):
    ledger = Ledger(tmp_path / "study.jsonl", draft(openmoji_cells.get_config()))
    ledger.add(GPO)
    return ledger.path


def test_a_run_is_found_by_another_process(path):
    ledger = Ledger(path, draft(openmoji_cells.get_config()))
    assert ledger.find("gpo", {}, 0) == GPO
    assert ledger.find("gpo", {}, 1) is None
    assert ledger.find("max", {}, 0) is None
    # Fields that JSON changes the type of are recognised, too.
    fast = Result("fast", 0, {"optimizer.rules": RULES}, [1.0], 2.0, {})
    ledger.add(fast)
    again = Ledger(path, draft(openmoji_cells.get_config()))
    assert again.find("gpo", {}, 0) == GPO
    found = again.find("fast", {"optimizer.rules": RULES}, 0)
    assert found is not None
    assert found.test == 2.0


def test_what_came_in_meanwhile_stays(path):
    ledgers = [Ledger(path, draft(openmoji_cells.get_config())) for _ in range(2)]
    for seed, ledger in enumerate(ledgers, 1):
        ledger.add(dataclasses.replace(GPO, seed=seed))
    ledgers[1].add(dataclasses.replace(GPO, seed=2))  # once more: nothing is double
    again = Ledger(path, draft(openmoji_cells.get_config()))
    assert [result.seed for result in again.results] == [0, 1, 2]
    assert ledgers[1].results == again.results


def test_where_a_host_keeps_its_files_is_no_part_of_the_recipe(path):
    config = draft(openmoji_cells.get_config())
    config.data.root, config.log_every = "/elsewhere", 1
    assert Ledger(path, config).find("gpo", {}, 0) == GPO


def test_runs_of_another_recipe_are_refused(path):
    config = draft(openmoji_cells.get_config())
    config.num_epochs += 1
    with pytest.raises(InputError, match=r"another recipe; .* num_epochs \(\d+ there"):
        Ledger(path, config)


def test_a_name_stands_for_the_same_fields(path):
    ledger = Ledger(path, draft(openmoji_cells.get_config()))
    with pytest.raises(InputError, match=r"'gpo' was run with \{\}, not with"):
        ledger.find("gpo", {"image.drop": 0.0}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "{", r"line 2: not JSON"),
        (lambda line: "[]", r"line 2: not a JSON object"),
        (lambda line: line.replace('"seed"', '"sed"'), r"line 2: .*: sed, seed"),
        (lambda line: line.replace("305.25", "null"), r"line 2: test is no number"),
        (lambda line: line.replace("310.5", "[]"), r"line 2: dev is no list"),
    ],
)
def test_a_damaged_line_is_named(path, change, message):
    recipe, line = path.read_text().splitlines()
    path.write_text(f"{recipe}\n{change(line)}\n")
    with pytest.raises(InputError, match=message):
        Ledger(path, draft(openmoji_cells.get_config()))


def test_a_file_without_recipe_is_named(path):
    path.write_text(json.dumps({"variant": "gpo"}) + "\n")
    with pytest.raises(InputError, match="line 1: holds no recipe"):
        Ledger(path, draft(openmoji_cells.get_config()))
    path.write_text("")
    with pytest.raises(InputError, match="line 1: not JSON"):
        Ledger(path, draft(openmoji_cells.get_config()))
