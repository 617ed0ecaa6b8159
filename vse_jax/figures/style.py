"""How all figures look, and how they are written."""

import io
import warnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vse_jax.base.files import AnyPath, write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart.
GREEN, ORANGE, BLUE = "#009E73", "#D55E00", "#0072B2"
INK, GREY, PALE = "#222222", "#767676", "#E6E6E6"


def tidy(axes: Axes) -> None:
    """A pale grid behind the data, and no frame above and at the right."""
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_png(figure: Figure, path: AnyPath) -> None:
    """Writes the figure as a PNG."""
    _write(figure, path, "png")


def save(figure: Figure, folder: AnyPath, name: str) -> list[AnyPath]:
    """Writes the figure as PNG and SVG; the same figure gives the same bytes."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": name}):
        _write(figure, paths[0], "png", metadata={})
        _write(figure, paths[1], "svg", metadata={"Date": None})
    return paths


def _write(figure: Figure, path: AnyPath, kind: str, **options) -> None:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Captions may have letters that no font here has; they become boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(content, format=kind, **options)
    write_atomically(path, content.getvalue())
