"""Curves of a run: training loss and rsum over the epochs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vse_jax.base.files import AnyPath
from vse_jax.figures.style import BLUE, GREEN, GREY, ORANGE, save_png, tidy
from vse_jax.metrics_logger import read_metrics
from vse_jax.optimizer import Schedule


def plot_curves(workdir: AnyPath, schedule: Schedule) -> None:
    """Draws `curves.png` from `metrics.jsonl`: training loss and rsum over the epochs.

    Raises:
        InputError: `metrics.jsonl` is missing or damaged.
    """
    rows = read_metrics(workdir)
    epochs = _epochs(max((row["step"] for row in rows), default=0), schedule)
    figure = Figure(figsize=(15, 5.5), dpi=110, layout="constrained")
    loss_axes, rsum_axes = figure.subplots(1, 2)

    # Sums over all negatives are a hundred times those over the hardest: log scale.
    x, y = _series(rows, "train/loss", schedule)
    loss_axes.semilogy(x, np.where(y > 0, y, np.nan), color=BLUE, linewidth=1.2)
    loss_axes.set_ylabel("training loss")

    names = sorted({key for row in rows for key in row if key.endswith("/rsum")})
    for name, color in zip(names, (GREEN, ORANGE, BLUE), strict=False):
        x, y = _series(rows, name, schedule)
        # Of what was reached on other data nothing is compared.
        comparable = np.where(x >= schedule.first_epoch, y, -np.inf)
        best = int(np.argmax(comparable))
        split = name.split("/")[1]
        label = f"{split}: best {y[best]:.1f} after {x[best]:.4g} epochs"
        rsum_axes.plot(x, y, "o-", color=color, markersize=4, label=label)
        rsum_axes.plot(x[best], y[best], "*", color=color, markersize=14)
        rsum_axes.legend(loc="lower right")
    rsum_axes.set_ylabel("rsum (at most 600)")
    rsum_axes.set_ylim(bottom=0)

    for axes in (loss_axes, rsum_axes):
        axes.set_xlabel(f"epoch ({schedule.steps_per_epoch:,} steps each)")
        axes.set_xlim(0, 1.02 * max(epochs, 1e-9))
        tidy(axes)
        _mark_events(axes, schedule, epochs)
    save_png(figure, workdir / "curves.png")


def _mark_events(axes: Axes, schedule: Schedule, epochs: float) -> None:
    """Dashed lines where the schedule changes what is trained."""
    events: dict[int, list[str]] = {}
    loss, optimizer = schedule.config.loss, schedule.config.optimizer
    triplet, drops = loss.name == "triplet", optimizer.schedule == "step"
    for epoch, label in (
        (loss.vse_mean_warmup_epochs if triplet else 0, "hardest negatives only"),
        (optimizer.lr_update if drops else 0, "learning rate ÷ 10"),
        (loss.ramp_epoch, "CNN opens, loss ramps up"),
        (schedule.first_epoch, "other data"),
    ):
        if 0 < epoch < epochs:
            events.setdefault(epoch, []).append(label)
    for level, (epoch, labels) in enumerate(events.items()):
        axes.axvline(epoch, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "; ".join(labels),
            (epoch, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5 + 14 * level),  # a line each: events may be close
            textcoords="offset points",
            ha="left" if epoch < 0.6 * epochs else "right",
            fontsize=10,
            color=GREY,
        )


def _epochs(step: int, schedule: Schedule) -> float:
    if step < schedule.first_step:  # about: each of their data has epochs of its own
        return step / schedule.first_step * schedule.first_epoch
    made = step - schedule.first_step
    return schedule.first_epoch + made / schedule.steps_per_epoch


def _series(rows: list[dict], name: str, schedule: Schedule):
    """(epochs, values) of one scalar; a value that was not finite is NaN."""
    points = [
        (_epochs(row["step"], schedule), row[name]) for row in rows if name in row
    ]
    return np.array(points, float).reshape(-1, 2).T  # None becomes NaN
