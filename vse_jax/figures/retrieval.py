"""What the model finds, as one picture: sentences → pictures, pictures → sentences."""

import functools
import io
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.data.images import load_image
from vse_jax.data.layout import Split
from vse_jax.figures.style import GREEN, GREY, INK, ORANGE

_TOP = 5
_SENTENCES, _PICTURES = 12, 6  # shown, in two columns
_TILE, _GAP = 124, 10  # px
_LINE = 24  # px from one line of text to the next
_COLUMN = 6 * _TILE + 7 * _GAP  # five results, and the right picture where they miss it
_MARGIN, _GUTTER = 40, 70
_WIDTH = 2 * _COLUMN + _GUTTER + 2 * _MARGIN


def retrieval_picture(
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
    sentences = _spread(len(images), _SENTENCES)
    pictures = _spread(len(images), _PICTURES)
    sentence_height = 2 * _LINE + _TILE + 58
    picture_height = _TILE + 36
    top = 176
    middle = top + -(-len(sentences) // 2) * sentence_height
    bottom = middle + 60 + -(-len(pictures) // 2) * picture_height
    canvas = Image.new("RGB", (_WIDTH, bottom + 10), "white")
    draw = ImageDraw.Draw(canvas)

    title = f"{split.name}: {len(images):,} pictures, {len(captions):,} sentences"
    draw.text((_MARGIN, 26), title, INK, _font(30, bold=True))
    legend = (
        "✓ and a green frame: the right answer.  Orange: its place if it is not among "
        "the first five.  Numbers: similarity."
    )
    if split.pictures is None:
        legend += "  This data set comes without picture files: ids are shown."
    draw.text((_MARGIN, 74), legend, GREY, _font(18))
    heading = _font(22, bold=True)
    draw.text((_MARGIN, top - 52), "Sentence → pictures", INK, heading)
    draw.text((_MARGIN, middle + 8), "Picture → sentences", INK, heading)

    per = split.captions_per_image
    for k, image in enumerate(sentences):
        caption = image * per + k % per  # not always a picture's first sentence
        place = _place(k, top, sentence_height)
        _draw_sentence(canvas, place, split, caption, images @ captions[caption])
    for k, image in enumerate(pictures):
        place = _place(k, middle + 60, picture_height)
        _draw_picture(canvas, place, split, image, captions @ images[image])
    png = io.BytesIO()
    canvas.save(png, format="PNG")
    write_atomically(path, png.getvalue())


def _draw_sentence(canvas, place, split: Split, caption: int, scores) -> None:
    """A sentence over its five best pictures, and the right one if they miss it."""
    x, y = place
    draw, font = ImageDraw.Draw(canvas), _font(18)
    lines = _wrap(split.captions[caption] or "(empty caption)", font, _COLUMN, 2)
    for k, line in enumerate(lines, start=2 - len(lines)):  # close to its pictures
        draw.text((x, y + k * _LINE), line, INK, font)
    y += 2 * _LINE + 6
    right = caption // split.captions_per_image
    order = _order(scores, np.arange(len(scores)) == right)
    for image in order[:_TOP].tolist():
        score = f"{scores[image]:.2f}"
        if image == right:
            _draw_tile(canvas, (x, y), split, image, f"✓ {score}", GREEN, framed=True)
        else:
            _draw_tile(canvas, (x, y), split, image, score, GREY)
        x += _TILE + _GAP
    rank = int(np.flatnonzero(order == right)[0]) + 1
    if rank > _TOP:
        x += 2 * _GAP  # apart from the results
        label = f"right: no. {rank:,}"
        _draw_tile(canvas, (x, y), split, right, label, ORANGE)


def _draw_picture(canvas, place, split: Split, image: int, scores) -> None:
    """A picture beside its five best sentences."""
    x, y = place
    _draw_tile(canvas, place, split, image, "", INK)
    draw = ImageDraw.Draw(canvas)
    right = np.arange(len(scores)) // split.captions_per_image == image
    order = _order(scores, right)
    x += _TILE + 2 * _GAP
    for k, caption in enumerate(order[:_TOP].tolist()):
        font = _font(17, bold=bool(right[caption]))
        colour = GREEN if right[caption] else INK
        line_y = y + 2 + k * _LINE
        draw.text((x, line_y), f"{scores[caption]:.2f}", GREY, _font(17))
        if right[caption]:
            draw.text((x + 50, line_y), "✓", colour, font)
        width = _COLUMN - _TILE - 2 * _GAP - 72
        text = _wrap(split.captions[caption] or "(empty caption)", font, width, 1)[0]
        draw.text((x + 72, line_y), text, colour, font)
    first = int(np.flatnonzero(right[order])[0]) + 1
    if first > _TOP:
        line_y = y + _TILE + 4
        draw.text(
            (x, line_y), f"first right sentence: no. {first:,}", ORANGE, _font(15)
        )


def _draw_tile(
    canvas, place, split: Split, image: int, label: str, colour: str, framed=False
) -> None:
    """A thumbnail with a label below it."""
    x, y = place
    draw = ImageDraw.Draw(canvas)
    box = (x, y, x + _TILE - 1, y + _TILE - 1)
    draw.rectangle(box, fill="white", outline="#CCCCCC")
    thumbnail = _thumbnail(split, image)
    if thumbnail is None:
        for k, line in enumerate(
            _wrap(split.image_ids[image], _font(14), _TILE - 16, 4)
        ):
            draw.text((x + 8, y + 8 + 18 * k), line, GREY, _font(14))
    else:
        offset = ((_TILE - thumbnail.width) // 2, (_TILE - thumbnail.height) // 2)
        canvas.paste(thumbnail, (x + offset[0], y + offset[1]))
    if framed:
        draw.rectangle((x - 5, y - 5, x + _TILE + 4, y + _TILE + 4), None, GREEN, 5)
    font = _font(16, bold=colour != GREY)
    draw.text((x + _TILE / 2, y + _TILE + 10), label, colour, font, anchor="mt")


def _thumbnail(split: Split, image: int) -> Image.Image | None:
    """The picture, at most a tile; None where there is no readable file."""
    if split.pictures is None:
        return None
    try:
        picture = Image.fromarray(load_image(split.pictures[image]))
    except InputError:  # config.data.on_bad_image = 'skip'; evaluation has reported it
        return None
    return ImageOps.contain(picture, (_TILE - 2, _TILE - 2))


def _spread(n: int, count: int) -> list[int]:
    """`count` indices spread evenly over range(n); all of them where n is smaller."""
    return np.unique(np.linspace(0, n - 1, count).astype(int)).tolist()


def _place(k: int, top: int, height: int) -> tuple[int, int]:
    """Upper left corner of the k-th item of two columns."""
    return _MARGIN + k % 2 * (_COLUMN + _GUTTER), top + k // 2 * height


def _order(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Best first; among equals the right ones last, as in `evaluation.ranking`."""
    return np.lexsort((right, -scores))


def _wrap(text: str, font, width: int, lines: int) -> list[str]:
    """Breaks a text into at most `lines` lines of `width` px; … where it is cut."""
    result = [""]
    words = text.split()
    while words:
        longer = f"{result[-1]} {words[0]}".strip()
        if font.getlength(longer) <= width:
            result[-1] = longer
            words.pop(0)
        elif len(result) == lines:
            return [*result[:-1], _fitting(longer, font, width, end="…")]
        elif result[-1]:
            result.append("")
        else:  # a word longer than a line, such as an id
            result[-1] = _fitting(words[0], font, width)
            words[0] = words[0][len(result[-1]) :]
            result.append("")
    return result


def _fitting(text: str, font, width: int, end: str = "") -> str:
    """The longest beginning of `text` that fits together with `end`."""
    while len(text) > 1 and font.getlength(text + end) > width:
        text = text[:-1]
    return text + end


@functools.lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib brings DejaVu, which covers European scripts and symbols.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", name), size
    )
