"""Figures of what the studies found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from studies.ledger import Result
from vse_jax.figures.style import BLUE, GREY, INK, save, tidy

Runs = Mapping[str, Sequence[Result]]  # variant → its runs, by seed


def study_dots(runs: Runs, titles: Mapping[str, str], folder: Path) -> list[Path]:
    """Draws `pooling_study.{png,svg}`: test rsum of each variant, mean and seeds."""
    figure = Figure(figsize=(10, 0.55 * len(runs) + 1.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = list(runs)[::-1]  # drawn from below
    for y, some in enumerate(runs[name] for name in names):
        test = np.array([result.test for result in some])
        axes.plot(test.mean(), y, "|", color=INK, markersize=22, markeredgewidth=2)
        axes.plot(test, np.full(len(test), y), "o", color=BLUE, markersize=7, alpha=0.7)
    axes.set_yticks(range(len(runs)), [titles[name] for name in names])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.set_xlabel("rsum on test: each seed (dot) and their mean (line)")
    axes.margins(x=0.1)
    tidy(axes)
    return save(figure, folder, "pooling_study")


def study_curves(runs: Runs, titles: Mapping[str, str], folder: Path) -> list[Path]:
    """Draws `pooling_curves.{png,svg}`: dev rsum after each epoch."""
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, some), color in zip(runs.items(), _colors(len(runs)), strict=True):
        curves = np.array([result.dev for result in some])
        epochs = np.arange(1, curves.shape[1] + 1)
        if len(curves) > 1:
            axes.plot(epochs, curves.T, color=color, linewidth=0.7, alpha=0.6)
        mean = curves.mean(axis=0)
        axes.plot(epochs, mean, "o-", color=color, markersize=4, label=titles[name])
    lowest = min(result.dev[0] for some in runs.values() for result in some)
    axes.set_ylim(bottom=lowest)
    axes.set_xlabel("epoch (135 steps)")
    axes.set_ylabel("rsum on dev")
    axes.legend(frameon=False, loc="lower right")
    tidy(axes)
    return save(figure, folder, "pooling_curves")


def study_coefficients(
    runs: Runs, titles: Mapping[str, str], folder: Path
) -> list[Path]:
    """Draws `pooling_coefficients.{png,svg}`: what the GPOs of each run have learned.

    The whole set of 49 cells, and captions of 16 tokens. A color for each variant, a
    line for each of its seeds.

    Args:
        runs: with a GPO in both towers.
    """
    sizes = {"image": 49, "text": 16}
    figure = Figure(figsize=(13, 6), dpi=120, layout="constrained")
    for axes, (tower, size) in zip(figure.subplots(1, 2), sizes.items(), strict=True):
        ranks = np.arange(1, size + 1)
        for (name, some), color in zip(runs.items(), _colors(len(runs)), strict=True):
            for number, result in enumerate(some):
                weights = (result.coefficients[tower] or {})[str(size)]
                label = titles[name] if number == 0 else None
                axes.plot(ranks, weights, color=color, label=label)
        axes.axhline(1 / size, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"{tower} tower, {size} vectors", loc="left", fontsize=13)
        axes.set_xlabel("rank of the value in its dimension (1: the largest)")
        axes.set_ylabel("coefficient (dashed: the average's)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        tidy(axes)
    return save(figure, folder, "pooling_coefficients")


def _colors(count: int) -> np.ndarray:
    return matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
