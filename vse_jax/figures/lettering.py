"""Text in pictures: fonts, and lines that fit."""

import functools
from pathlib import Path

import matplotlib
from PIL import ImageFont


def wrap(text: str, font, width: int, lines: int) -> list[str]:
    """Breaks a text into at most `lines` lines of `width` px; … where it is cut."""
    result = [""]
    words = text.split()
    while words:
        longer = f"{result[-1]} {words[0]}".strip()
        if font.getlength(longer) <= width:
            result[-1] = longer
            words.pop(0)
        elif len(result) == lines:
            return [*result[:-1], fitting(longer, font, width, end="…")]
        elif result[-1]:
            result.append("")
        else:  # a word longer than a line, such as an id
            result[-1] = fitting(words[0], font, width)
            words[0] = words[0][len(result[-1]) :]
            result.append("")
    return result


def fitting(text: str, font, width: int, end: str = "") -> str:
    """The longest beginning of `text` that fits together with `end`."""
    while len(text) > 1 and font.getlength(text + end) > width:
        text = text[:-1]
    return text + end


@functools.lru_cache
def font_of(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib brings DejaVu, which covers European scripts and symbols.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", name), size
    )
