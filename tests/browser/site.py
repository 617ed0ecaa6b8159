"""The server over a dozen pictures, at a free port.

python -m tests.browser.site FOLDER [TOKEN [CUTOFF]]

The model knows colours only (tests/helpers/searching.py), so that a test knows what a
query finds.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.helpers import searching

# A name is no markup.
HOSTILE = "<img src=x onerror=alert(1)>.png"


def draw_pictures(folder: Path) -> Path:
    """Eight of `searching.draw_pictures` and four of two colours, of other shapes.

    They come to those that the folder has.
    """
    searching.draw_pictures(folder)
    two_colours(folder / "trips" / "red left, blue right.png", "red", "blue", (120, 60))
    two_colours(folder / "trips" / "green left.png", "green", "white", (50, 150))
    two_colours(folder / "old" / "yellow left.png", "yellow", "black", (200, 100))
    two_colours(folder / HOSTILE, "purple", "black", (80, 80))
    return folder


def two_colours(path: Path, left: str, right: str, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, searching.COLOURS[left])
    width, height = size
    picture.paste(searching.COLOURS[right], (width // 2, 0, width, height))
    picture.save(path)


@contextlib.contextmanager
def served(folder: Path, token: str = "", cutoff: str = "") -> Iterator[str]:
    """Starts the server in a process of its own; gives its address."""
    command = [sys.executable, "-m", "tests.browser.site", str(folder), token, cutoff]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline()
            assert first, "the server did not start; its error stands above"
            yield first.split()[0]
        finally:
            process.terminate()


def main(folder: Path, token: str = "", cutoff: str = "") -> None:
    from vse_search.serving import serve_index

    index = searching.make_index(draw_pictures(folder / "pictures"), folder / "index")
    model = searching.ColourModel()
    model.cutoff = float(cutoff) if cutoff else None
    options = searching.options(port=0, token=token or None)
    serve_index(options, index, lambda: model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
