"""How all pictures look, and how they are written."""

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vse_jax.base.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart.
GREEN, ORANGE, BLUE = "#009E73", "#D55E00", "#0072B2"
INK, GREY, PALE = "#222222", "#767676", "#E6E6E6"


def tidy(axes: Axes) -> None:
    """A pale grid behind the data, and no frame above and at the right."""
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes the figure as PNG and SVG; the same figure gives the same bytes."""
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            path = folder / f"{name}.{kind}"
            write_atomically(path, content.getvalue())
            paths.append(path)
    return paths
