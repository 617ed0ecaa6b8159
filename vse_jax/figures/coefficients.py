"""The coefficients that a trained GPO has learned, as curves over the rank."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from vse_jax.base.config import takes_regions
from vse_jax.base.errors import InputError
from vse_jax.figures.style import GREY, INK, save, tidy
from vse_jax.models.gpo import GPO
from vse_jax.models.vse import VSE

_SET_SIZES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a tower's largest set

# Set size → the weights of its ranks, largest value first.
Coefficients = dict[int, Float[np.ndarray, " ranks"]]


def learned_coefficients(config: ConfigDict, vse: VSE) -> dict[str, Coefficients | str]:
    """The coefficients of both towers of a model, for several set sizes.

    A tower without GPO gives the name of its aggregator instead.

    Raises:
        InputError: no tower has a GPO.
    """
    largest = {
        "image": _largest_image_set(config, vse),
        "text": min(config.data.max_tokens, 64),  # few captions are longer
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
        raise InputError("no tower of this model has a GPO whose coefficients to draw")
    return towers


def _largest_image_set(config: ConfigDict, vse: VSE) -> int:
    if takes_regions(config.image):
        return config.image.max_regions
    size = config.image.size
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    backbone = vse.image.backbone  # type: ignore[attr-defined]
    return math.prod(jax.eval_shape(backbone, picture).shape[1:3])


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
        tidy(axes)
    return save(figure, workdir, "coefficients")
