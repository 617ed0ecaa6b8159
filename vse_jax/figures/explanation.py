"""Why a picture and a sentence match, drawn: a heat map, and words with bars."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageOps

from vse_jax.base.files import write_atomically
from vse_jax.figures.lettering import fitting, font_of, wrap
from vse_jax.figures.style import BLUE, GREY, INK, ORANGE, PALE

# The layout, in px.
_MARGIN, _GAP = 40, 30
_SIDE = 480  # of the square that holds a picture
_WIDTH = 2 * _SIDE + _GAP + 2 * _MARGIN
_TITLE_TOP, _LEGEND_TOP, _PICTURES_TOP = 26, 96, 140
_ROW = 30  # a word
_NAME, _BARS = 220, 600  # the columns of the words and of their bars
_OPAQUE = 0.75  # the strongest cell's colour over the picture


def plot_explanation(
    path: Path,
    picture: UInt8[np.ndarray, "height width 3"],
    caption: str,
    cells: Float[np.ndarray, "rows columns"],
    words: Sequence[tuple[str, float]],
) -> None:
    """Draws how a similarity splits over a picture's cells and a caption's words.

    Args:
        path: PNG file to write.
        picture, caption: the two.
        cells, words: each one's parts of the similarity.
    """
    height = _SIDE * picture.shape[0] // max(picture.shape[:2])
    words_top = _PICTURES_TOP + height + 2 * _GAP
    canvas = Image.new("RGB", (_WIDTH, words_top + (len(words) + 1) * _ROW), "white")
    page = _Page(canvas, ImageDraw.Draw(canvas))
    page.header(caption, float(cells.sum()))
    page.pictures(picture, cells)
    page.words(words_top, words)
    png = io.BytesIO()
    canvas.save(png, format="PNG")
    write_atomically(path, png.getvalue())


@dataclass(frozen=True)
class _Page:
    canvas: Image.Image
    draw: ImageDraw.ImageDraw

    def header(self, caption: str, similarity: float) -> None:
        font = font_of(26, bold=True)
        lines = wrap(f"{similarity:.3f}  {caption}", font, _WIDTH - 2 * _MARGIN, 2)
        for k, line in enumerate(lines, start=2 - len(lines)):  # close to the legend
            self.draw.text((_MARGIN, _TITLE_TOP + 34 * k), line, INK, font)
        legend = (
            "The similarity is the sum of the cells, and the sum of the words. "
            "Orange adds to it, blue takes away."
        )
        self.draw.text((_MARGIN, _LEGEND_TOP), legend, GREY, font_of(16))

    def pictures(self, pixels, cells) -> None:
        """The picture as it is, and under its cells' colours."""
        plain = ImageOps.contain(Image.fromarray(pixels), (_SIDE, _SIDE))
        plain = ImageOps.pad(plain, plain.size)
        self.canvas.paste(plain, (_MARGIN, _PICTURES_TOP))
        # The model sees the picture as a square: its cells lie over all of it.
        colours = Image.fromarray(_colours(cells))
        colours = colours.resize(plain.size, Image.Resampling.NEAREST)
        pale = Image.blend(ImageOps.grayscale(plain).convert("RGB"), plain, 0.3)
        pale.paste(colours, mask=colours.getchannel("A"))
        self.canvas.paste(pale, (_MARGIN + _SIDE + _GAP, _PICTURES_TOP))

    def words(self, top: int, words: Sequence[tuple[str, float]]) -> None:
        """A line for each word: its name, its bar, its part."""
        parts = [part for _, part in words]
        least, most = min(*parts, 0.0), max(*parts, 0.0)
        scale = _BARS / (most - least or 1.0)  # px a unit
        zero = _MARGIN + _NAME - round(least * scale)
        bottom = top + len(words) * _ROW
        self.draw.line((zero, top - 4, zero, bottom), PALE, 2)
        for k, (word, part) in enumerate(words):
            y = top + k * _ROW
            font = font_of(17)
            name = fitting(word, font, _NAME)
            self.draw.text((_MARGIN, y), name, INK if word[0] != "[" else GREY, font)
            end = zero + round(part * scale)
            box = (min(zero, end), y + 3, max(zero, end), y + _ROW - 10)
            self.draw.rectangle(box, ORANGE if part > 0 else BLUE)
            place = _MARGIN + _NAME + _BARS + _GAP, y
            self.draw.text(place, f"{part:+.3f}".replace("-", "−"), GREY, font)


def _colours(
    cells: Float[np.ndarray, "rows columns"],
) -> UInt8[np.ndarray, "rows columns 4"]:
    """Orange and blue, the more opaque the larger the part."""
    share = np.abs(cells) / (np.abs(cells).max() or 1.0)
    orange, blue = (ImageColor.getrgb(colour) for colour in (ORANGE, BLUE))
    rgb = np.where(cells[..., None] > 0, orange, blue)
    alpha = np.rint(255 * _OPAQUE * share)[..., None]
    return np.concatenate([rgb, alpha], axis=-1).astype(np.uint8)
