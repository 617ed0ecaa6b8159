"""Learned coefficients: read off a checkpoint, drawn with the same bytes each time."""

import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.pictures import assert_drawn
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.load import load_model
from vse_jax.commands.plot import plot
from vse_jax.figures.coefficients import learned_coefficients
from vse_jax.models.build import merge_model


def kept_run(workdir, kind="grid", **pools):
    """A workdir with a best checkpoint of an untrained model, and its config."""
    config = draft(tiny.get_config())
    config.image.kind = kind
    vit = {"patch": 8, "hidden": 16, "layers": 1, "heads": 2, "ffn": 32}
    config.image.vit.update(vit)
    config.image.pool = pools.get("image", "gpo")
    config.text.pool = pools.get("text", "gpo")
    write_run(config, workdir)
    return config


@pytest.mark.parametrize("kind", ["grid", "vit"])
def test_coefficients_are_those_of_the_towers_for_several_set_sizes(kind, tmp_path):
    config = kept_run(tmp_path, kind, text="avg")
    loaded = load_model(config, tmp_path)
    vse = merge_model(loaded.graphdef, loaded.arrays)
    towers = learned_coefficients(config, vse)
    assert towers["text"] == "avg"
    assert list(towers["image"]) == [2, 4, 8, 12, 16]  # of 4 × 4 cells or patches
    for size, weights in towers["image"].items():
        assert len(weights) == size
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_a_run_without_gpo_has_no_coefficients(tmp_path):
    config = kept_run(tmp_path, image="avg", text="cls")
    with pytest.raises(InputError, match="no encoder of this model has a GPO"):
        plot(config, tmp_path)


def test_plot_draws_what_a_run_holds(tmp_path, capsys):
    config = kept_run(tmp_path)
    plot(config, tmp_path)
    first = assert_drawn(tmp_path, "coefficients")
    assert str(tmp_path / "coefficients.svg") in capsys.readouterr().out
    plot(config, tmp_path)
    assert assert_drawn(tmp_path, "coefficients") == first
