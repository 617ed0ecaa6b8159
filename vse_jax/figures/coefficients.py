"""The coefficients that a trained GPO has learned, as curves over the rank."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.config import Config, encoder_config
from vse_jax.data.collate import image_shapes
from vse_jax.distributed.mesh import abstract_batch
from vse_jax.figures.style import GREY, INK, save, tidy
from vse_jax.models.gpo import GPO
from vse_jax.models.vse import VSE, SetEncoder

_SET_SIZES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of an encoder's largest set

# Set size → the weights of its ranks, largest value first.
Coefficients = dict[int, Float[np.ndarray, " ranks"]]


def learned_coefficients(config: Config, vse: VSE) -> dict[str, Coefficients | str]:
    """The coefficients of both towers of a model, for several set sizes.

    An encoder without GPO gives the name of its aggregator instead.

    Raises:
        InputError: no encoder has a GPO.
    """
    towers: dict[str, Coefficients | str] = {}
    for side in ("image", "text"):
        encoder = getattr(vse, side)
        pool = encoder.gpool if isinstance(encoder, SetEncoder) else None
        if not isinstance(pool, GPO):
            towers[side] = encoder_config(config, side).pool
            continue
        size = _largest_set(config, side, encoder)
        sizes = sorted({max(round(size * part), 1) for part in _SET_SIZES})
        weights = np.asarray(pool.weights(jnp.array(sizes), size))
        towers[side] = {n: row[:n] for n, row in zip(sizes, weights, strict=True)}
    if all(isinstance(curves, str) for curves in towers.values()):
        raise InputError(
            "no encoder of this model has a GPO whose coefficients to draw"
        )
    return towers


def _largest_set(config: Config, side: str, encoder: SetEncoder) -> int:
    if side == "text":
        return min(config.data.max_tokens, 64)  # few captions are longer
    batch = abstract_batch(image_shapes(config.image, 1))
    _, mask = jax.eval_shape(lambda batch: encoder.elements(batch), batch)
    return mask.shape[1]


def plot_coefficients(
    workdir: AnyPath, towers: Mapping[str, Coefficients | str]
) -> list[AnyPath]:
    """Draws `coefficients.{png,svg}`: weight over rank, a line for each set size.

    As the paper's Figure 4, one panel an encoder.
    """
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    names = {"image": "image encoder", "text": "text encoder"}
    for axes, (side, curves) in zip(figure.subplots(1, 2), towers.items(), strict=True):
        axes.set_title(names[side], loc="left", fontsize=13, color=INK)
        if isinstance(curves, str):
            axes.text(0.5, 0.5, f"pool = '{curves}': no GPO", ha="center", color=GREY)
            axes.set_axis_off()
            continue
        # Even steps of lightness, without the palest end.
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
        for (size, weights), color in zip(curves.items(), colors, strict=True):
            marker = "o-" if size <= 40 else "-"
            ranks = np.arange(1, size + 1)
            label = f"{size} vectors"
            axes.plot(ranks, weights, marker, color=color, markersize=4, label=label)
        axes.set_xlabel("rank of the value in its dimension (1: the largest)")
        axes.set_ylabel("coefficient")
        axes.set_ylim(bottom=0)
        axes.legend(title="size of the set", frameon=False)
        tidy(axes)
    return save(figure, workdir, "coefficients")
