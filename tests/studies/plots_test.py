"""The picture of the synthetic study, drawn from its results."""

import json

import pytest

from configs import common
from studies.gpo_synthetic import PAPER
from studies.plots import plot
from tests.helpers.pictures import assert_drawn
from vse_jax.base.errors import InputError


def test_the_papers_synthetic_study(tmp_path):
    (tmp_path / "table6.json").write_text(json.dumps(PAPER))
    plot(common.base(), tmp_path)
    assert_drawn(tmp_path, "table6")
    cut = {sizes: table for sizes, table in PAPER.items() if sizes != "larger"}
    (tmp_path / "table6.json").write_text(json.dumps(cut))
    with pytest.raises(InputError, match=r"table6\.json: damaged .*'larger'"):
        plot(common.base(), tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '{"seen": 1}'])
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "table6.json").write_text(content)
    with pytest.raises(InputError, match=r"table6\.json: "):
        plot(common.base(), tmp_path)
