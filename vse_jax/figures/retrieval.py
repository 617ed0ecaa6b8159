"""What the model finds, as one picture: sentences → pictures, pictures → sentences."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageOps

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.data.dataset import Split
from vse_jax.data.images import load_image
from vse_jax.figures.lettering import font_of, wrap
from vse_jax.figures.style import GREEN, GREY, INK, ORANGE

_TOP = 5  # results shown of a query
_SENTENCES, _PICTURES = 12, 6  # queries shown, in two columns

# The layout, in px.
_MARGIN, _GUTTER = 40, 70  # beside the columns and between them
_TILE, _GAP = 124, 10  # side of a thumbnail; between neighbours
_LINE = 24  # from one line of text to the next
_COLUMN = 6 * _TILE + 7 * _GAP  # five results, and the right picture where they miss it
_WIDTH = 2 * _COLUMN + _GUTTER + 2 * _MARGIN
_TITLE_TOP, _LEGEND_TOP, _FIRST_TOP = 26, 74, 176
_HEADING = 52  # from the top of a section's heading to its first row
_SECTION_GAP, _BOTTOM = 60, 10  # below the first section and below the second
_SENTENCE = 2 * _LINE + 6  # from a sentence's two lines down to its tiles
_SENTENCE_ROW = _SENTENCE + _TILE + 52
_PICTURE_ROW = _TILE + 36
_TICK, _TEXT = 50, 72  # from a score to the tick and the sentence behind it
_FRAME = 5  # thickness of the frame, around the tile
_INSIDE = 8  # from a tile's border to an id written in it


@dataclass(frozen=True)
class _Section:
    """Items of one height, in two columns from left to right."""

    top: int
    row: int  # height of an item
    items: list[int]

    @property
    def bottom(self) -> int:
        return self.top + -(-len(self.items) // 2) * self.row

    def place(self, k: int) -> tuple[int, int]:
        """Upper left corner of the k-th item."""
        x = _MARGIN + k % 2 * (_COLUMN + _GUTTER)
        return x, self.top + k // 2 * self.row


def plot_retrieval(
    path: Path,
    split: Split,
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
) -> None:
    """Draws what the model finds: sentences → pictures, then pictures → sentences.

    The queries are spread evenly over the split, so they are the same for every model
    and chosen by nobody. The right answer is framed; where it is not among the first
    five, it is shown beside them with its rank.

    Args:
        path: PNG file to write.
        split: whose embeddings these are; its pictures are read for the thumbnails.
        images, captions: embeddings in the split's order.
    """
    sentences = _Section(_FIRST_TOP, _SENTENCE_ROW, _spread(len(images), _SENTENCES))
    pictures = _Section(
        sentences.bottom + _SECTION_GAP, _PICTURE_ROW, _spread(len(images), _PICTURES)
    )
    canvas = Image.new("RGB", (_WIDTH, pictures.bottom + _BOTTOM), "white")
    page = _Page(split, canvas, ImageDraw.Draw(canvas))

    page.header()
    page.heading(sentences, "Sentence → pictures")
    page.heading(pictures, "Picture → sentences")
    per = split.captions_per_image
    for k, image in enumerate(sentences.items):
        caption = image * per + k % per  # not always a picture's first sentence
        page.sentence(sentences.place(k), caption, images @ captions[caption])
    for k, image in enumerate(pictures.items):
        page.picture(pictures.place(k), image, captions @ images[image])
    png = io.BytesIO()
    canvas.save(png, format="PNG")
    write_atomically(path, png.getvalue())


@dataclass(frozen=True)
class _Page:
    """Draws the items of a split; a place is an upper left corner (x, y)."""

    split: Split
    canvas: Image.Image
    draw: ImageDraw.ImageDraw

    def header(self) -> None:
        split = self.split
        title = (
            f"{split.name}: {len(split.image_ids):,} pictures, "
            f"{len(split.captions):,} sentences"
        )
        self.draw.text((_MARGIN, _TITLE_TOP), title, INK, font_of(30, bold=True))
        legend = (
            "✓ and a green frame: the right answer.  Orange: its place if it is not "
            "among the first five.  Numbers: similarity."
        )
        if split.images is None:
            legend += "  This data set comes without picture files: ids are shown."
        self.draw.text((_MARGIN, _LEGEND_TOP), legend, GREY, font_of(18))

    def heading(self, section: _Section, text: str) -> None:
        place = _MARGIN, section.top - _HEADING
        self.draw.text(place, text, INK, font_of(22, bold=True))

    def sentence(self, place: tuple[int, int], caption: int, scores) -> None:
        """A sentence over its five best pictures, and the right one if they miss it."""
        x, y = place
        font = font_of(18)
        lines = wrap(self._caption(caption), font, _COLUMN, 2)
        for k, line in enumerate(lines, start=2 - len(lines)):  # close to its pictures
            self.draw.text((x, y + k * _LINE), line, INK, font)
        y += _SENTENCE
        right = caption // self.split.captions_per_image
        order = _order(scores, np.arange(len(scores)) == right)
        for image in order[:_TOP].tolist():
            score = f"{scores[image]:.2f}"
            if image == right:
                self.tile((x, y), image, f"✓ {score}", GREEN, framed=True)
            else:
                self.tile((x, y), image, score, GREY)
            x += _TILE + _GAP
        rank = int(np.flatnonzero(order == right)[0]) + 1
        if rank > _TOP:
            x += 2 * _GAP  # apart from the results
            self.tile((x, y), right, f"right: no. {rank:,}", ORANGE)

    def picture(self, place: tuple[int, int], image: int, scores) -> None:
        """A picture beside its five best sentences."""
        self.tile(place, image, "", INK)
        right = np.arange(len(scores)) // self.split.captions_per_image == image
        order = _order(scores, right)
        x, y = place[0] + _TILE + 2 * _GAP, place[1]
        width = _COLUMN - _TILE - 2 * _GAP - _TEXT
        for k, caption in enumerate(order[:_TOP].tolist()):
            font = font_of(17, bold=bool(right[caption]))
            colour = GREEN if right[caption] else INK
            line = y + 2 + k * _LINE
            self.draw.text((x, line), f"{scores[caption]:.2f}", GREY, font_of(17))
            if right[caption]:
                self.draw.text((x + _TICK, line), "✓", colour, font)
            text = wrap(self._caption(caption), font, width, 1)[0]
            self.draw.text((x + _TEXT, line), text, colour, font)
        first = int(np.flatnonzero(right[order])[0]) + 1
        if first > _TOP:
            text = f"first right sentence: no. {first:,}"
            self.draw.text((x, y + _TILE + 4), text, ORANGE, font_of(15))

    def tile(
        self, place: tuple[int, int], image: int, label: str, colour: str, framed=False
    ) -> None:
        """A thumbnail with a label below it."""
        x, y = place
        self._square(place, 0, fill="white", outline="#CCCCCC")
        thumbnail = _thumbnail(self.split, image)
        if thumbnail is None:
            font = font_of(14)
            name = self.split.image_ids[image]
            for k, line in enumerate(wrap(name, font, _TILE - 2 * _INSIDE, 4)):
                line_place = x + _INSIDE, y + _INSIDE + 18 * k
                self.draw.text(line_place, line, GREY, font)
        else:
            left = x + (_TILE - thumbnail.width) // 2
            self.canvas.paste(thumbnail, (left, y + (_TILE - thumbnail.height) // 2))
        if framed:
            self._square(place, _FRAME, outline=GREEN, width=_FRAME)
        font = font_of(16, bold=colour != GREY)
        below = x + _TILE / 2, y + _TILE + _GAP
        self.draw.text(below, label, colour, font, anchor="mt")

    def _square(self, place: tuple[int, int], beyond: int, **style) -> None:
        """A tile's outline, `beyond` px larger on every side."""
        x, y = place
        end = _TILE - 1 + beyond
        self.draw.rectangle((x - beyond, y - beyond, x + end, y + end), **style)

    def _caption(self, caption: int) -> str:
        return self.split.captions[caption] or "(empty caption)"


def _thumbnail(split: Split, image: int) -> Image.Image | None:
    """The picture, at most a tile; None where there is no readable file."""
    if split.images is None:
        return None
    try:
        picture = Image.fromarray(load_image(split.images[image]))
    except InputError:  # config.data.on_bad_image = 'skip'; evaluation has reported it
        return None
    return ImageOps.contain(picture, (_TILE - 2, _TILE - 2))


def _spread(n: int, count: int) -> list[int]:
    """`count` indices spread evenly over range(n); all of them where n is smaller."""
    return np.unique(np.linspace(0, n - 1, count).astype(int)).tolist()


def _order(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Best first; among equals the right ones last, as in `evaluation.retrieval`."""
    return np.lexsort((right, -scores))
