"""The plots: drawn from what is there, and the same bytes from the same results."""

import json

import numpy as np
import pytest
from flax import nnx

from tests import tiny
from vse_jax.base.config import save_config
from vse_jax.base.errors import InputError
from vse_jax.data.images import load_image
from vse_jax.models.vse import VSE
from vse_jax.search import plots
from vse_jax.search.plots import curves_picture
from vse_jax.synthetic import PAPER
from vse_jax.training.checkpoint import Checkpoints
from vse_jax.training.optimizer import Schedule
from vse_jax.training.state import split_model

SCHEDULE = Schedule(
    steps_per_epoch=10,
    ramp_steps=11,
    learning_rate=1e-3,
    lr_update=2,
    vse_mean_warmup_epochs=1,
    ramp_epoch=1,
)


@pytest.mark.parametrize("loss", [3.0, None, 0.0])
def test_curves(tmp_path, loss):
    rows = [{"step": step, "train/loss": loss} for step in range(1, 41)]
    rows += [{"step": 10 * k, "eval/dev/rsum": 100.0 + k} for k in (1, 2, 3, 4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    curves_picture(tmp_path, SCHEDULE)
    assert load_image(tmp_path / "curves.png").shape[1] > 1200


def test_curves_of_a_run_without_validation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    curves_picture(tmp_path, SCHEDULE)
    assert (tmp_path / "curves.png").exists()


def test_curves_without_metrics_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        curves_picture(tmp_path, SCHEDULE)


def kept_run(workdir, **pools):
    """A workdir with a best checkpoint of an untrained model, and its config."""
    config = tiny.get_config()
    config.image.pool = pools.get("image", "gpo")
    config.text.pool = pools.get("text", "gpo")
    save_config(config, workdir / "config.json")
    _, model = split_model(VSE(config, rngs=nnx.Rngs(0)))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_best(1, model, {"rsum": 1.0, "epoch": 1})
    return config


def test_coefficients_are_those_of_the_towers_for_several_set_sizes(tmp_path):
    config = kept_run(tmp_path, text="avg")
    towers = plots.learned_coefficients(config, tmp_path)
    assert towers["text"] == "avg"
    assert list(towers["image"]) == [2, 4, 8, 12, 16]  # of 4 × 4 cells
    for size, weights in towers["image"].items():
        assert len(weights) == size
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_a_run_without_gpo_has_no_coefficients(tmp_path):
    config = kept_run(tmp_path, image="avg", text="cls")
    with pytest.raises(InputError, match="no tower has a GPO"):
        plots.plot(config, tmp_path)


def assert_drawn(folder, name):
    """PNG of a page's width, SVG with text; returns both contents."""
    assert load_image(folder / f"{name}.png").shape[1] >= 1000
    assert (folder / f"{name}.svg").read_text().count("<path") > 20
    return [(folder / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]


def test_plot_draws_what_a_run_holds(tmp_path, capsys):
    config = kept_run(tmp_path)
    plots.plot(config, tmp_path)
    first = assert_drawn(tmp_path, "coefficients")
    assert str(tmp_path / "coefficients.svg") in capsys.readouterr().out
    plots.plot(config, tmp_path)
    assert assert_drawn(tmp_path, "coefficients") == first


STUDY = {
    "seeds": [0, 1],
    "variants": {
        "gpo": {"title": "GPO", "test": [320.0, 330.0]},
        "avg": {"title": "average", "test": [300.0, 305.5]},
    },
}


def test_the_study_of_poolings(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    plots.plot(tiny.get_config(), tmp_path)
    assert_drawn(tmp_path, "pooling_study")


def test_the_papers_synthetic_study(tmp_path):
    (tmp_path / "table6.json").write_text(json.dumps(PAPER))
    plots.plot(tiny.get_config(), tmp_path)
    assert_drawn(tmp_path, "table6")
    cut = {sizes: table for sizes, table in PAPER.items() if sizes != "larger"}
    (tmp_path / "table6.json").write_text(json.dumps(cut))
    with pytest.raises(InputError, match=r"table6\.json: damaged .*'larger'"):
        plots.plot(tiny.get_config(), tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"seeds": [0]}', '{"seeds": [0], "variants": {"a": {}}}']
)
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study\.json: "):
        plots.plot(tiny.get_config(), tmp_path)
