"""What the model finds, as one figure: captions → images, images → captions."""

import contextlib
import textwrap
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.data.dataset import Split
from vse_jax.data.images import load_image
from vse_jax.figures.style import GREEN, GREY, INK, ORANGE, save_png

_TOP = 5  # results shown of a query
_CAPTIONS, _IMAGES = 12, 6  # queries shown, in two columns
# The layout, in inches from the top left.
_MARGIN, _TILE, _STEP = 0.5, 1.15, 1.3  # a thumbnail; from one to the next
_COLUMN = 7 * _STEP  # five results, a gap, the positive where they miss it, a gutter
_CAPTION_ROW, _IMAGE_ROW = 2.0, 1.6


def plot_retrieval(
    path: AnyPath,
    split: Split,
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
) -> Figure:
    """Draws what the model finds: captions → images, then images → captions.

    The queries are spread evenly over the split, so they are the same for every model
    and chosen by nobody. A positive is framed; where none is among the first five, it
    is shown beside them with its rank.

    Args:
        path: PNG file to write.
        split: whose embeddings these are; its images are read for the thumbnails.
        images, captions: embeddings in the split's order.
    """
    n = len(images)
    of_captions, of_images = _spread(n, _CAPTIONS), _spread(n, _IMAGES)
    top = 2.1  # of the first thumbnails
    middle = top + -(-len(of_captions) // 2) * _CAPTION_ROW + 0.4
    width = 2 * _COLUMN + _MARGIN
    height = middle + -(-len(of_images) // 2) * _IMAGE_ROW
    with matplotlib.rc_context({"text.parse_math": False, "text.color": INK}):
        figure = Figure(figsize=(width, height), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        title = f"{split.name}: {n:,} images, {len(captions):,} captions"
        axes.text(_MARGIN, 0.5, title, size=22, weight="bold")
        legend = (
            "✓ and a green frame: a positive.  Orange: its rank where it is not among "
            "the first five.  Numbers: similarity."
        )
        if split.images is None:
            legend += "  This data set comes without image files: ids are shown."
        axes.text(_MARGIN, 0.85, legend, size=13, color=GREY)

        axes.text(_MARGIN, 1.4, "Caption → images", size=17, weight="bold")
        for k, image in enumerate(of_captions):
            x, y = _MARGIN + k % 2 * _COLUMN, top + k // 2 * _CAPTION_ROW
            # Not always an image's first caption.
            caption = split.offsets[image] + k % split.captions_per_image[image]
            text = split.captions[caption] or "(empty caption)"
            text = textwrap.fill(text, 78, max_lines=2, placeholder=" …")
            axes.text(x, y - 0.12, text, size=13, va="bottom")
            scores = images @ captions[caption]
            order = _order(scores, np.arange(n) == image)
            for found in order[:_TOP].tolist():
                score = f"{scores[found]:.2f}"
                if found == image:
                    _draw_tile(axes, x, y, split, image, f"✓ {score}", GREEN)
                else:
                    _draw_tile(axes, x, y, split, found, score, GREY)
                x += _STEP
            rank = int(np.flatnonzero(order == image)[0]) + 1
            if rank > _TOP:
                x += 0.2  # apart from the results
                _draw_tile(axes, x, y, split, image, f"rank {rank:,}", ORANGE)

        axes.text(_MARGIN, middle - 0.4, "Image → captions", size=17, weight="bold")
        for k, image in enumerate(of_images):
            x, y = _MARGIN + k % 2 * _COLUMN, middle + k // 2 * _IMAGE_ROW
            _draw_tile(axes, x, y, split, image, "", GREY)
            scores = captions @ images[image]
            positive = split.caption_images == image
            order = _order(scores, positive)
            x += _STEP
            for line, found in enumerate(order[:_TOP].tolist()):
                below = y + (line + 0.5) * _TILE / _TOP
                style: dict[str, Any] = {"size": 12, "va": "center"}
                axes.text(x, below, f"{scores[found]:.2f}", color=GREY, **style)
                if positive[found]:
                    style |= {"color": GREEN, "weight": "bold"}
                    axes.text(x + 0.45, below, "✓", **style)
                text = split.captions[found] or "(empty caption)"
                text = textwrap.shorten(text, 66, placeholder=" …")
                axes.text(x + 0.65, below, text, **style)
            first = int(np.flatnonzero(positive[order])[0]) + 1
            if first > _TOP:
                text = f"first positive: rank {first:,}"
                axes.text(x, y + _TILE + 0.04, text, size=12, va="top", color=ORANGE)
        save_png(figure, path)
    return figure


def _draw_tile(
    axes: Axes, x: float, y: float, split: Split, image: int, label: str, color: str
) -> None:
    """A thumbnail, framed where it is green, with a label below it."""
    pixels = None
    if split.images is not None:
        # A bad one was reported by the evaluation (config.data.on_bad_image = 'skip').
        with contextlib.suppress(InputError):
            pixels = Image.fromarray(load_image(split.images[image]))
    if pixels is None:
        name = textwrap.fill(split.image_ids[image], 12, max_lines=5)
        axes.text(x + 0.06, y + 0.06, name, size=10, va="top", color=GREY)
    else:
        square = ImageOps.pad(pixels, (160, 160), color="white")
        axes.imshow(square, extent=(x, x + _TILE, y + _TILE, y))
    edge, line = (GREEN, 5) if color == GREEN else ("#CCCCCC", 1)
    frame = Rectangle((x, y), _TILE, _TILE, fill=False, color=edge, linewidth=line)
    axes.add_patch(frame)
    weight = "normal" if color == GREY else "bold"
    axes.text(
        x + _TILE / 2,
        y + _TILE + 0.08,
        label,
        size=12,
        ha="center",
        va="top",
        color=color,
        weight=weight,
    )


def _spread(n: int, count: int) -> list[int]:
    """`count` indices spread evenly over range(n); all of them where n is smaller."""
    return np.unique(np.linspace(0, n - 1, count).astype(int)).tolist()


def _order(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Best first; among equals the positives last, as in `evaluation.retrieval`."""
    return np.lexsort((positive, -scores))
