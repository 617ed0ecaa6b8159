"""The pictures of the studies, drawn from their results."""

import json

import pytest

from configs import common
from studies.gpo_synthetic import PAPER
from studies.plots import plot
from tests.helpers.pictures import assert_drawn
from vse_jax.base.errors import InputError


def config_of(task):
    config = common.base()
    config.task = task
    return config


STUDY = {
    "seeds": [0, 1],
    "variants": {
        "gpo": {"title": "GPO", "test": [320.0, 330.0]},
        "avg": {"title": "average", "test": [300.0, 305.5]},
    },
}


def test_the_study_of_poolings(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    plot(config_of("pooling_study"), tmp_path)
    assert_drawn(tmp_path, "pooling_study")


def test_the_papers_synthetic_study(tmp_path):
    (tmp_path / "table6.json").write_text(json.dumps(PAPER))
    plot(config_of("gpo_synthetic"), tmp_path)
    assert_drawn(tmp_path, "table6")
    cut = {sizes: table for sizes, table in PAPER.items() if sizes != "larger"}
    (tmp_path / "table6.json").write_text(json.dumps(cut))
    with pytest.raises(InputError, match=r"table6\.json: damaged .*'larger'"):
        plot(config_of("gpo_synthetic"), tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"seeds": [0]}', '{"seeds": [0], "variants": {"a": {}}}']
)
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study\.json: "):
        plot(config_of("pooling_study"), tmp_path)
