"""The curves of a run, drawn from metrics.jsonl."""

import dataclasses
import json

import pytest
from matplotlib.axes import Axes

from vse_jax.base.errors import InputError
from vse_jax.config import Config, with_fields
from vse_jax.data.images import load_image
from vse_jax.figures.curves import plot_curves
from vse_jax.optimizer import Schedule

CONFIG = with_fields(Config(), {"num_epochs": 4, "optimizer.lr_update": 2})
SCHEDULE = Schedule(CONFIG, steps_per_epoch=10, ramp_steps=11)


@pytest.mark.parametrize("loss", [3.0, None, 0.0])
def test_curves(tmp_path, loss):
    rows = [{"step": step, "train/loss": loss} for step in range(1, 41)]
    rows += [{"step": 10 * k, "eval/dev/rsum": 100.0 + k} for k in (1, 2, 3, 4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    plot_curves(tmp_path, SCHEDULE)
    assert load_image(tmp_path / "curves.png").shape[1] > 1200


def test_other_data_begin_a_curve_of_their_own(tmp_path, monkeypatch):
    """A best rsum on the old ones is not the best any more."""
    rows = [{"step": 10, "eval/dev/rsum": 425.0}, {"step": 20, "eval/dev/rsum": 220.0}]
    rows += [{"step": 40, "eval/dev/rsum": 230.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    labels, plot = [], Axes.plot

    def noted(self, *args, label=None, **kwargs):
        labels.append(label)
        return plot(self, *args, label=label, **kwargs)

    monkeypatch.setattr(Axes, "plot", noted)
    schedule = dataclasses.replace(SCHEDULE, first_step=20, first_epoch=2)
    plot_curves(tmp_path, schedule)
    assert "dev: best 230.0 after 4 epochs" in labels


def test_curves_of_a_run_without_validation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    plot_curves(tmp_path, SCHEDULE)
    assert (tmp_path / "curves.png").exists()


def test_curves_without_metrics_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        plot_curves(tmp_path, SCHEDULE)
