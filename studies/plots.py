"""Pictures of what the studies found."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict

from studies.gpo_synthetic import PAPER, PATTERNS
from vse_jax.base.errors import InputError
from vse_jax.evaluation.positives import read_object
from vse_jax.figures.style import BLUE, GREY, INK, ORANGE, save, tidy


def plot(config: ConfigDict, workdir: Path) -> None:
    """--mode=plot of a study: draws the results that `workdir` holds.

    config.task says of which: study.json of the study of poolings, table6.json of the
    paper's synthetic study.

    Raises:
        InputError: the file is missing or damaged.
    """
    draw, name = {
        "pooling_study": (study_picture, "study.json"),
        "gpo_synthetic": (table6_picture, "table6.json"),
    }[config.task]
    try:
        made = draw(workdir, workdir)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{workdir / name}: damaged ({error!r})") from error
    print("\n".join(map(str, made)))


def study_picture(folder: Path, destination: Path) -> list[Path]:
    """Draws `pooling_study.{png,svg}` from study.json: rsum of each pooling.

    Raises:
        InputError: study.json is missing or not JSON.
    """
    study = read_object(folder / "study.json")
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
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return save(figure, destination, "pooling_study")


def table6_picture(folder: Path, destination: Path) -> list[Path]:
    """Draws `table6.{png,svg}` from table6.json: our values and the paper's, all cells.

    Raises:
        InputError: table6.json is missing or not JSON.
    """
    measured = read_object(folder / "table6.json")
    figure = Figure(figsize=(15, 7.5), dpi=120, layout="constrained")
    grid = figure.subplots(len(PAPER), len(PATTERNS), sharex=True, sharey=True)
    for row, (sizes, table) in zip(grid, PAPER.items(), strict=True):
        for axes, pattern in zip(row, PATTERNS, strict=True):
            for y, generator in enumerate(table):
                pair = measured[sizes][generator][pattern], table[generator][pattern]
                axes.plot(pair, (y, y), "-", color=GREY, linewidth=1.5)
                axes.plot(pair[1], y, "o", color=ORANGE, markersize=8, mfc="white")
                axes.plot(pair[0], y, "o", color=BLUE, markersize=5)
            axes.set_yticks(range(len(table)), list(table))
            axes.set_ylim(len(table) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            tidy(axes)
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
    return save(figure, destination, "table6")
