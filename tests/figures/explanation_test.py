"""An explanation's picture: cells where they are, words with bars as long as parts."""

import numpy as np
from PIL import Image, ImageColor

from vse_jax.figures.explanation import plot_explanation
from vse_jax.figures.style import BLUE, ORANGE


def pixels_of(picture: np.ndarray, colour: str) -> np.ndarray:
    return (picture == ImageColor.getrgb(colour)).all(axis=-1)


def test_cells_and_words_are_drawn_by_their_parts(tmp_path):
    white = np.full((40, 80, 3), 255, np.uint8)
    cells = np.zeros((2, 2))
    cells[0, 1], cells[1, 0] = 0.4, -0.1
    words = [("[CLS]", 0.1), ("dog", 0.4), ("no", -0.2)]
    plot_explanation(tmp_path / "e.png", white, "dog", cells, words)
    picture = np.asarray(Image.open(tmp_path / "e.png"))

    heat = picture[140 : 140 + 240, 40 + 480 + 30 :][:, :480]
    upper, lower = heat[:120], heat[120:]
    assert (upper[:, 240:] == upper[0, 240]).all()  # one colour in a cell
    red, green, blue = (int(x) for x in upper[0, 240])
    assert red > green > blue  # orange
    red, green, blue = (int(x) for x in lower[5, 5])
    assert blue > green > red
    assert (upper[:, :240] == 255).all()  # a cell without a part
    assert (lower[:, 240:] == 255).all()

    bars = picture[140 + 240 :]
    positive = pixels_of(bars, ORANGE).sum(axis=1)
    lengths = sorted({int(n) for n in positive if n})
    assert len(lengths) == 2
    assert abs(lengths[1] / lengths[0] - 4) < 0.1
    assert abs(pixels_of(bars, BLUE).sum(axis=1).max() / lengths[0] - 2) < 0.1
