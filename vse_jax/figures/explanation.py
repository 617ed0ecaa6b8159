"""Why an image and a caption match, drawn: a heat map, and words with bars."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vse_jax.base.files import AnyPath
from vse_jax.figures.style import BLUE, GREY, INK, ORANGE, PALE, save_png

_WIDTH, _ROW = 10.7, 0.31  # inches: the figure, a word
_OPAQUE = 0.75  # the strongest cell's colour over the image


def plot_explanation(
    path: AnyPath,
    image: UInt8[np.ndarray, "height width 3"],
    caption: str,
    cells: Float[np.ndarray, "rows columns"],
    words: Sequence[tuple[str, float]],
    methods: str,
) -> Figure:
    """Draws how a similarity splits over an image's cells and a caption's words.

    Args:
        path: PNG file to write.
        image, caption: the two.
        cells, words: each one's parts of the similarity.
        methods: how they were found.
    """
    tall = 4.9 * image.shape[0] / max(image.shape[:2])
    bars = _ROW * (len(words) + 1)
    title = textwrap.fill(
        f"{cells.sum():.3f}  {caption}", 62, max_lines=2, placeholder=" …"
    )
    legend = (
        "The similarity is the sum of the cells, and the sum of the words. "
        f"Orange adds to it, blue takes away. How they were found: {methods}."
    )
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure((_WIDTH, 1.4 + tall + bars), dpi=100, layout="constrained")
        figure.suptitle(title, x=0.02, ha="left", size=18, weight="bold", color=INK)
        grid = figure.add_gridspec(2, 2, height_ratios=(tall + 0.3, bars))
        plain, heat = (figure.add_subplot(grid[0, k]) for k in range(2))
        plain.imshow(image)
        plain.set_title(legend, loc="left", fontsize=11, color=GREY)
        # The model sees the image as a square: its cells lie over all of it.
        grey = image.mean(axis=2, keepdims=True)
        heat.imshow((0.7 * grey + 0.3 * image) / 255)
        share = np.abs(cells) / (np.abs(cells).max() or 1.0)
        color = np.where(cells[..., None] > 0, to_rgb(ORANGE), to_rgb(BLUE))
        heat.imshow(
            np.concatenate([color, _OPAQUE * share[..., None]], axis=-1),
            extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
            interpolation="nearest",
        )
        for axes in (plain, heat):
            axes.set_axis_off()

        axes = figure.add_subplot(grid[1, :])
        parts = [part for _, part in words]
        colors = [ORANGE if part > 0 else BLUE for part in parts]
        drawn = axes.barh(range(len(words)), parts, 0.6, color=colors)
        labels = [f"{part:+.3f}".replace("-", "−") for part in parts]
        axes.bar_label(drawn, labels, padding=4, color=GREY)
        names = [textwrap.shorten(word, 24, placeholder="…") for word, _ in words]
        axes.set_yticks(range(len(words)), names, size=12)
        for label, (word, _) in zip(axes.get_yticklabels(), words, strict=True):
            label.set_color(GREY if word[0] == "[" else INK)
        axes.axvline(0, color=PALE, linewidth=2, zorder=0)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        save_png(figure, path)
    return figure
