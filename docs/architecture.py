"""Draws docs/images/architecture.png: two towers, their sets, GPO, the loss.

python -m docs.architecture
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vse_jax.figures.style import BLUE, GREEN, GREY, INK, ORANGE, save_png

IMAGE = Path(__file__).parent / "images/architecture.png"
CELL = 1.7  # side of a value's square
DIMENSIONS = 5
PALETTE = {"image": BLUE, "text": GREEN}
# GPO's weights by rank: as an example, the largest values count most.
WEIGHTS = np.array([0.46, 0.26, 0.14, 0.08, 0.06])


def text(axes: Axes, x: float, y: float, words: str, **style) -> None:
    axes.text(x, y, words, **{"ha": "center", "va": "center", "color": INK} | style)


def box(axes: Axes, x: float, y: float, width: float, words: str, color: str) -> None:
    """A box of one step, centred at (x, y)."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 3.6),
        width,
        7.2,
        boxstyle="round,pad=0,rounding_size=1",
        facecolor="white",
        edgecolor=color,
        linewidth=1.6,
    )
    axes.add_patch(shape)
    text(axes, x, y, words, fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": GREY, "linewidth": 1.4}
    axes.add_patch(FancyArrowPatch(start, end, **style))


def values(axes: Axes, left: float, y: float, matrix: np.ndarray, color: str) -> None:
    """Squares, the darker the larger; a column is an element, a row a dimension."""
    rows, columns = matrix.shape
    top = y + rows * CELL / 2
    for row in range(rows):
        for column in range(columns):
            corner = (left + column * CELL, top - (row + 1) * CELL)
            style = {"facecolor": color, "edgecolor": "white", "linewidth": 1}
            shade = 0.08 + 0.92 * matrix[row, column]
            axes.add_patch(Rectangle(corner, CELL, CELL, alpha=shade, **style))


def tower(axes: Axes, kind: str, y: float) -> None:
    """One encoder, from left to right, its middle at height y."""
    color = PALETTE[kind]
    rng = np.random.default_rng({"image": 1, "text": 4}[kind])
    elements = rng.uniform(0, 1, (DIMENSIONS, len(WEIGHTS)))
    ordered = -np.sort(-elements, axis=1)
    pooled = (ordered @ WEIGHTS)[:, None]

    if kind == "image":
        corner, side = (1.0, y - 4.2), 8.4
        axes.add_patch(Rectangle(corner, side, side, facecolor="#CFE3F1"))
        hill = [(1.0, y - 4.2), (4.3, y + 0.4), (6.4, y - 1.6), (9.4, y - 0.4)]
        axes.fill(*zip(*hill, (9.4, y - 4.2), strict=True), color="#7FA8C4")
        axes.plot(7.3, y + 2.2, "o", color="#F0C24B", markersize=13)
        for part in (1, 2):
            at = corner[0] + part * side / 3
            axes.plot((at, at), (y - 4.2, y + 4.2), color="white", linewidth=1)
            level = y - 4.2 + part * side / 3
            axes.plot((1.0, 9.4), (level, level), color="white", linewidth=1)
        box(axes, 18, y, 11, "CNN or ViT", color)
    else:
        text(axes, 5.2, y, "“a hill\nunder\nthe sun”", fontsize=10.5, style="italic")
        box(axes, 18, y, 11, "BERT\nor BiGRU", color)
    arrow(axes, (10.2, y), (12.1, y))
    arrow(axes, (23.9, y), (26.6, y))

    values(axes, 27.2, y, elements, color)
    arrow(axes, (36.4, y), (42.8, y))
    text(axes, 39.5, y + 1.9, "sort", fontsize=10)

    values(axes, 43.4, y, ordered, color)
    # Both towers' weights are drawn towards the middle, where they come from.
    way = {"image": -1, "text": 1}[kind]
    edge = y + way * (DIMENSIONS * CELL / 2 + 0.5)
    for rank, weight in enumerate(WEIGHTS):
        corner = (43.4 + rank * CELL + 0.2, edge)
        height = way * 9 * weight
        axes.add_patch(Rectangle(corner, CELL - 0.4, height, facecolor=ORANGE))
    arrow(axes, (52.6, y), (60.2, y))
    text(axes, 56.2, y + 1.9, "Σ weight ·\nvalue", fontsize=9, va="bottom")
    text(axes, 56.2, y - 1.4, "length 1", fontsize=9, va="top", color=GREY)
    values(axes, 60.8, y, pooled, color)


def main() -> None:
    figure = Figure(figsize=(10, 4.4), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 44)
    axes.axis("off")
    high, low = 31.5, 9.5
    for x, title in (
        (5.2, "input"),
        (18, "encoder"),
        (31.4, "set of vectors"),
        (52, "GPO pooling"),
        (86, "similarities of a batch"),
    ):
        text(axes, x, 42, title, fontsize=11, weight="bold")
    tower(axes, "image", high)
    tower(axes, "text", low)
    text(axes, 31.4, high - 6.4, "a column: a cell or region", fontsize=9, color=GREY)
    text(axes, 31.4, low - 6.4, "a column: a token", fontsize=9, color=GREY)

    # Each GPO has a generator of its own, drawn once.
    middle = (high + low) / 2
    words = "BiGRU over the ranks:\na weight for each,\nfrom the set's size alone"
    text(axes, 56.5, middle, words, fontsize=9.5, color=ORANGE, ha="left")
    for end in (high - 8.6, low + 8.6):
        style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": ORANGE}
        start = (55.8, middle)
        axes.add_patch(FancyArrowPatch(start, (49.6, end), linewidth=1.3, **style))

    size, left, top, side = 4, 80.5, 29.3, 4.1
    rng = np.random.default_rng(7)
    for row in range(size):
        for column in range(size):
            corner = (left + column * side, top - (row + 1) * side)
            same = row == column
            shade = 0.95 if same else rng.uniform(0.08, 0.4)
            color = INK if same else GREY
            style = {"facecolor": color, "edgecolor": "white", "linewidth": 1.5}
            axes.add_patch(Rectangle(corner, side, side, alpha=shade, **style))
    text(axes, left - 1.4, top - 8.2, "images", fontsize=9, rotation=90, color=BLUE)
    text(axes, left + 8.2, top + 1.5, "captions", fontsize=9, color=GREEN)
    arrow(axes, (63.4, high - 0.6), (left - 3.2, top - 4))
    arrow(axes, (63.4, low + 0.6), (left - 3.2, top - 12.4))
    text(
        axes,
        86,
        8.6,
        "loss: a positive (dark) beats the\nhardest negatives by a margin",
        fontsize=10,
    )
    arrow(axes, (left + 8.2, 12.6), (left + 8.2, 10.6))
    save_png(figure, IMAGE)
    print(IMAGE)


if __name__ == "__main__":
    main()
