"""An explanation's figure: cells where they are, words with bars as long as parts."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from vse_jax.figures.explanation import plot_explanation
from vse_jax.figures.style import BLUE, ORANGE


def test_cells_and_words_are_drawn_by_their_parts(tmp_path):
    white = np.full((40, 80, 3), 255, np.uint8)
    cells = np.zeros((2, 2))
    cells[0, 1], cells[1, 0] = 0.4, -0.1
    words = [("[CLS]", 0.1), ("dog", 0.4), ("no", -0.2)]
    figure = plot_explanation(
        tmp_path / "e.png", white, "dog", cells, words, "cells: exact"
    )
    picture = np.asarray(Image.open(tmp_path / "e.png"))[..., :3]
    plain, heat_axes, bars = figure.axes
    assert plain.get_title(loc="left").endswith("How they were found: cells: exact.")

    box = heat_axes.get_window_extent()  # px, from below
    left, right = round(box.x0) + 2, round(box.x1) - 2
    top, bottom = len(picture) - round(box.y1) + 2, len(picture) - round(box.y0) - 2
    heat = picture[top:bottom, left:right]
    rows, columns = heat.shape[0] // 2, heat.shape[1] // 2
    upper, lower = heat[: rows - 2], heat[rows + 2 :]
    assert (upper[:, columns + 2 :] == upper[0, -1]).all()  # one colour in a cell
    red, green, blue = (int(x) for x in upper[0, -1])
    assert red > green > blue  # orange
    red, green, blue = (int(x) for x in lower[5, 5])
    assert blue > green > red
    assert (upper[:, : columns - 2] == 255).all()  # a cell without a part
    assert (lower[:, columns + 2 :] == 255).all()

    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.1, 0.4, -0.2])
    colors = [bar.get_facecolor() for bar in bars.patches]
    assert colors == [to_rgba(ORANGE), to_rgba(ORANGE), to_rgba(BLUE)]
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "[CLS]",
        "dog",
        "no",
    ]
    assert [text.get_text() for text in bars.texts] == ["+0.100", "+0.400", "−0.200"]
