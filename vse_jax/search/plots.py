"""Plots: a run's curves and pooling coefficients, and the results of the studies."""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.evaluation.evaluator import load_best
from vse_jax.models.gpo import GPO
from vse_jax.models.vse import VSE
from vse_jax.search.colours import BLUE, GREEN, GREY, INK, ORANGE, PALE
from vse_jax.synthetic import PAPER, PATTERNS
from vse_jax.training.metric_writer import read_metrics
from vse_jax.training.optimizer import Schedule
from vse_jax.training.state import abstract_model, merge_model

_SET_SIZES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a tower's largest set


def curves_picture(workdir: Path, schedule: Schedule) -> None:
    """Draws `curves.png` from `metrics.jsonl`: training loss and rsum over the epochs.

    Raises:
        InputError: `metrics.jsonl` is missing or damaged.
    """
    rows = read_metrics(workdir)
    epochs = max((row["step"] for row in rows), default=0) / schedule.steps_per_epoch
    figure = Figure(figsize=(15, 5.5), dpi=110, layout="constrained")
    loss_axes, rsum_axes = figure.subplots(1, 2)

    # Sums over all negatives are a hundred times those over the hardest: log scale.
    x, y = _series(rows, "train/loss", schedule)
    loss_axes.semilogy(x, np.where(y > 0, y, np.nan), color=BLUE, linewidth=1.2)
    loss_axes.set_ylabel("training loss, summed over the batch")

    names = sorted({key for row in rows for key in row if key.endswith("/rsum")})
    for name, colour in zip(names, (GREEN, ORANGE, BLUE), strict=False):
        x, y = _series(rows, name, schedule)
        best = int(np.argmax(y))
        split = name.split("/")[1]
        label = f"{split}: best {y[best]:.1f} after {x[best]:.4g} epochs"
        rsum_axes.plot(x, y, "o-", color=colour, markersize=4, label=label)
        rsum_axes.plot(x[best], y[best], "*", color=colour, markersize=14)
        rsum_axes.legend(loc="lower right")
    rsum_axes.set_ylabel("rsum (at most 600)")
    rsum_axes.set_ylim(bottom=0)

    for axes in (loss_axes, rsum_axes):
        axes.set_xlabel(f"epoch ({schedule.steps_per_epoch:,} steps each)")
        axes.set_xlim(0, 1.02 * max(epochs, 1e-9))
        _tidy(axes)
        _mark_events(axes, schedule, epochs)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(workdir / "curves.png", png.getvalue())


def _mark_events(axes: Axes, schedule: Schedule, epochs: float) -> None:
    """Dashed lines where the schedule changes what is trained."""
    events: dict[int, list[str]] = {}
    for epoch, label in (
        (schedule.vse_mean_warmup_epochs, "hardest negatives only"),
        (schedule.lr_update, "learning rate ÷ 10"),
        (schedule.ramp_epoch, "CNN opens, loss ramps up"),
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


def _series(rows: list[dict], name: str, schedule: Schedule):
    """(epochs, values) of one scalar; a value that was not finite is NaN."""
    points = [
        (row["step"] / schedule.steps_per_epoch, row[name])
        for row in rows
        if name in row
    ]
    return np.array(points, float).reshape(-1, 2).T  # None becomes NaN


def plot(config: ConfigDict, workdir: Path) -> None:
    """--mode=plot: draws everything that `workdir` holds results of.

    A trained run: curves of its GPO's coefficients. The study of poolings (study.json)
    and the paper's synthetic study (table6.json): their results.

    Raises:
        InputError: nothing to draw, or a damaged file.
    """
    made = []
    for name, draw in (
        ("study.json", lambda: study_picture(workdir, workdir)),
        ("table6.json", lambda: table6_picture(workdir)),
    ):
        if (workdir / name).exists():
            try:
                made += draw()
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"{workdir / name}: damaged ({error!r})") from None
    if not made or (workdir / "checkpoints").exists():
        made += coefficients_picture(workdir, learned_coefficients(config, workdir))
    print("\n".join(map(str, made)))


# Set size → the weights of its ranks, largest value first.
Coefficients = dict[int, Float[np.ndarray, " ranks"]]


def learned_coefficients(
    config: ConfigDict, workdir: Path
) -> dict[str, Coefficients | str]:
    """The coefficients of both towers of the best checkpoint, for several set sizes.

    A tower without GPO gives the name of its aggregator instead.

    Raises:
        InputError: no checkpoint, or no tower has a GPO.
    """
    _, model = load_best(config, workdir)
    graphdef, _ = abstract_model(config)
    vse = merge_model(graphdef, model)
    largest = {
        "image": _largest_image_set(config, vse),
        "text": min(max(config.data.token_buckets), 64),  # few captions are longer
    }
    towers: dict[str, Coefficients | str] = {}
    for tower, size in largest.items():
        pool = getattr(vse, tower).gpool
        if not isinstance(pool, GPO):
            towers[tower] = config[tower].pool
            continue
        sizes = sorted({max(round(size * part), 1) for part in _SET_SIZES})
        weights = np.asarray(pool.weights(jnp.array(sizes), size))
        towers[tower] = {n: row[:n] for n, row in zip(sizes, weights, strict=True)}
    if all(isinstance(tower, str) for tower in towers.values()):
        raise InputError(f"{workdir}: no tower has a GPO whose coefficients to draw")
    return towers


def _largest_image_set(config: ConfigDict, vse: VSE) -> int:
    if config.image.kind == "region":
        return config.image.max_regions
    size = config.image.size
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return math.prod(jax.eval_shape(vse.image.backbone, picture).shape[1:3])


def coefficients_picture(
    workdir: Path, towers: Mapping[str, Coefficients | str]
) -> list[Path]:
    """Draws `coefficients.{png,svg}`: weight over rank, a line for each set size.

    As the paper's Figure 4, one panel a tower.
    """
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    names = {"image": "image tower", "text": "text tower"}
    for axes, (tower, curves) in zip(
        figure.subplots(1, 2), towers.items(), strict=True
    ):
        axes.set_title(names[tower], loc="left", fontsize=13, color=INK)
        if isinstance(curves, str):
            axes.text(0.5, 0.5, f"pool = '{curves}': no GPO", ha="center", color=GREY)
            axes.set_axis_off()
            continue
        # Even steps of lightness, without the palest end.
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
        for (size, weights), colour in zip(curves.items(), colours, strict=True):
            marker = "o-" if size <= 40 else "-"
            ranks = np.arange(1, size + 1)
            label = f"{size} vectors"
            axes.plot(ranks, weights, marker, color=colour, markersize=4, label=label)
        axes.set_xlabel("rank of the value in its dimension (1: the largest)")
        axes.set_ylabel("coefficient")
        axes.set_ylim(bottom=0)
        axes.legend(title="size of the set", frameon=False)
        _tidy(axes)
    return _save(figure, workdir, "coefficients")


def study_picture(folder: Path, destination: Path) -> list[Path]:
    """Draws `pooling_study.{png,svg}` from study.json: rsum of each pooling.

    Raises:
        InputError: study.json is missing or not JSON.
    """
    study = _read_json(folder / "study.json")
    variants = list(study["variants"].values())[::-1]  # drawn from below
    figure = Figure(figsize=(10, 0.62 * len(variants) + 1.4), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for y, row in enumerate(variants):
        test = np.array(row["test"], float)
        axes.barh(y, test.mean(), height=0.62, color=BLUE, alpha=0.35)
        axes.plot(test, np.full(len(test), y), "o", color=BLUE, markersize=5)
        axes.text(4, y, f"{test.mean():.1f}", va="center", color=INK, fontsize=12)
    axes.set_yticks(range(len(variants)), [row["title"] for row in variants])
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.set_xlabel(
        f"rsum on test: mean (bar) and each of {len(study['seeds'])} seeds (dots)"
    )
    axes.set_xlim(left=0)
    _tidy(axes)
    axes.grid(axis="y", visible=False)
    return _save(figure, destination, "pooling_study")


def table6_picture(folder: Path) -> list[Path]:
    """Draws `table6.{png,svg}` from table6.json: ours beside the paper's, all cells.

    Raises:
        InputError: table6.json is missing or not JSON.
    """
    ours = _read_json(folder / "table6.json")
    figure = Figure(figsize=(15, 7.5), dpi=120, layout="constrained")
    grid = figure.subplots(len(PAPER), len(PATTERNS), sharex=True, sharey=True)
    for row, (sizes, table) in zip(grid, PAPER.items(), strict=True):
        for axes, pattern in zip(row, PATTERNS, strict=True):
            for y, generator in enumerate(table):
                pair = ours[sizes][generator][pattern], table[generator][pattern]
                axes.plot(pair, (y, y), "-", color=GREY, linewidth=1.5)
                axes.plot(pair[1], y, "o", color=ORANGE, markersize=8, mfc="white")
                axes.plot(pair[0], y, "o", color=BLUE, markersize=5)
            axes.set_yticks(range(len(table)), list(table))
            axes.set_ylim(len(table) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            _tidy(axes)
        row[0].set_ylabel(f"{sizes} sizes", fontsize=12)
    for axes, pattern in zip(grid[0], PATTERNS, strict=True):
        axes.set_title(pattern, fontsize=13, color=INK)
    for axes in grid[-1]:
        axes.set_xlim(left=-0.006)
    marks = [
        Line2D([], [], color=BLUE, marker="o", linestyle="", markersize=5),
        Line2D([], [], color=ORANGE, marker="o", linestyle="", markersize=8, mfc="w"),
    ]
    figure.supxlabel("RMSE of the generated coefficients")
    figure.legend(marks, ["here", "paper"], loc="outside upper right", ncols=2)
    return _save(figure, folder, "table6")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON") from None


def _tidy(axes: Axes) -> None:
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes the figure as PNG and SVG; the same figure gives the same bytes."""
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            path = folder / f"{name}.{kind}"
            write_atomically(path, content.getvalue())
            paths.append(path)
    return paths
