"""The one reader of the caption tables that people write.

With a header, separated by commas, semicolons or tabs: a column `image`; one column
`caption` (a line per caption) or caption1 … captionN (a line per image); perhaps a
column `split`. Cells may be quoted as spreadsheets do it. The headers of Flickr30k's
results.csv (image_name| comment_number| comment) and of a Hugging Face image folder's
metadata.csv (file_name, text) stand for these names.

Without one, as Flickr30k's: `name.jpg#0<TAB>caption` or `name.jpg<TAB>caption`, a line
per caption, in which quotes are part of the caption.

What has no single meaning in these forms is refused with its line and column.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_text
from vse_jax.data.prepare.entry import SPLITS, Entry

# What people call such columns: a first line with a cell of the one kind, or one that
# begins with the other, is a header.
_CAPTION_COLUMN = re.compile(r"captions?[ ._-]*[0-9]*")
_FIRST_COLUMN = re.compile(
    r"(image|img|file|picture|photo)s?[ ._-]?(name|path|id|file)?|"
    r"path|name|id|url|split"
)
# Headers of other people's tables → the names here.
_HEADERS = (
    {"image_name": "image", "comment": "caption"},
    {"file_name": "image", "text": "caption"},
    {"file_name": "image"},
)
# What programs write where there is nothing.
_NOTHING = re.compile(r"nan|none|null|n/?a|<na>|#(n/a|ref!|value!|name\?|div/0!|num!)")


def read_caption_table(path: Path) -> Iterator[Entry]:
    """The lines of a caption table; blank ones are left out.

    Raises:
        InputError: names the file, and the line and column, that is wrong.
    """
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}: a NUL byte, which no text holds")
    lines = text.split("\n")
    number = next((n for n, line in enumerate(lines, 1) if line.strip()), 1)
    first = lines[number - 1]
    delimiters = "\t" if "\t" in first else ",;"
    if first.startswith("image_name|"):
        delimiters = "|"
    headers = {delimiter: _header(first, delimiter) for delimiter in delimiters}
    for delimiter, names in headers.items():
        if "image" in names:
            return _with_header(path, text, delimiter)
    for names in headers.values():
        captions = any(map(_CAPTION_COLUMN.fullmatch, names))
        if captions or (names and _FIRST_COLUMN.fullmatch(names[0])):
            raise InputError(
                f"{path}, line {number}: no column 'image' among "
                f"{', '.join(map(repr, names))}"
            )
    if "\t" not in first:
        raise InputError(
            f"{path}, line {number}: neither 'name<TAB>caption' nor a CSV whose header "
            "has a column 'image'"
        )
    return _without_header(path, text)


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return _names(next(_csv_reader([line], delimiter), []))
    except csv.Error:
        return []


def _names(cells: list[str]) -> list[str]:
    names = [" ".join(cell.split()).casefold() for cell in cells]
    known = next((known for known in _HEADERS if known.keys() <= {*names}), {})
    return [known.get(name, name) for name in names]


def _csv_reader(lines: list[str], delimiter: str):
    ended = (f"{line}\n" for line in lines)
    if delimiter == "|":  # Flickr30k's, one line of which lacks its second delimiter
        ended = (re.sub(r"^([^|]+\| *\d+) {2,}([^|]+)$", r"\1| \2", x) for x in ended)
        return csv.reader(ended, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    # Strict: a quote that is never closed would swallow the rest of the file.
    return csv.reader(ended, delimiter=delimiter, skipinitialspace=True, strict=True)


def _with_header(path: Path, text: str, delimiter: str) -> Iterator[Entry]:
    rows = _rows(path, text, delimiter)
    line, cells = next(rows)
    names = _names(cells)
    columns = _columns(names, f"{path}, line {line}")
    nameless = [column for column, name in enumerate(names) if column and not name]
    for line, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"{path}, line {line}: fields do not match the header ({len(cells)}, "
                f"not {len(names)})"
            )
        for column in nameless:
            if cells[column]:
                raise InputError(
                    f"{path}, line {line}, column {column + 1}: "
                    f"{cells[column][:40]!r} is in a column without a name"
                )
        image, split, captions = "", "", []
        for name, column in columns.items():
            where, value = f"{path}, line {line}, column {name!r}", cells[column]
            if not value:
                raise InputError(f"{where}: blank")
            if name == "image":
                image = value
            elif name != "split":
                captions.append(_caption(value, where))
            elif (split := value.casefold()) not in SPLITS:
                raise InputError(f"{where}: {split!r} is none of {', '.join(SPLITS)}")
        yield Entry(f"{path}, line {line}", image, split, captions)


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, stripped cells) of each row that is not blank."""
    reader = _csv_reader(text.split("\n"), delimiter)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells


def _columns(names: list[str], where: str) -> dict[str, int]:
    """{name: column} of the columns that are read, captions by their numbers.

    A column `caption` beside numbered ones comes before them.
    """
    found: dict[str, int] = {}
    numbers: dict[int, str] = {}
    for column, name in enumerate(names):
        same = name
        if numbered := re.fullmatch(r"caption([0-9]*)", name):
            same = numbers.setdefault(int(numbered[1] or -1), name)
        elif _CAPTION_COLUMN.fullmatch(name):
            raise InputError(
                f"{where}: column {name!r} is neither 'caption' nor 'captionN'"
            )
        elif name not in ("image", "split"):
            continue
        if same in found:
            raise InputError(
                f"{where}: columns {found[same] + 1} and {column + 1} are both called "
                f"{name!r}"
            )
        found[name] = column
    if not numbers:
        raise InputError(f"{where}: no column 'caption' or 'caption1'")
    if -1 in numbers and len(numbers) > 1:
        name = numbers.pop(-1)
        numbers[min(numbers) - 1] = name
    last = max(numbers)
    for number in range(0 if 0 in numbers else 1, last):
        if number not in numbers:
            raise InputError(
                f"{where}: no column 'caption{number}', but {numbers[last]!r}"
            )
    left = [name for name in names if name and name not in found]
    if left:
        logging.info("%s: columns that are not read: %s", where, ", ".join(left))
    order = ["image", "split", *(name for _, name in sorted(numbers.items()))]
    return {name: found[name] for name in order if name in found}


def _without_header(path: Path, text: str) -> Iterator[Entry]:
    lines: dict[str, int] = {}  # of 'name.jpg#0'
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        cells = [cell.strip() for cell in content.split("\t")]
        while len(cells) > 2 and not cells[-1]:  # tabs at the end say nothing
            cells.pop()
        if len(cells) != 2:
            raise InputError(
                f"{path}, line {line}: {len(cells) - 1} tabs; without a header, a line "
                "is 'name<TAB>caption'"
            )
        name, caption = cells
        image = re.sub(r"#[0-9]+$", "", name)
        if not image:
            raise InputError(f"{path}, line {line}, column 1: no image name")
        if image != name and lines.setdefault(name, line) != line:
            raise InputError(
                f"{path}, line {line}, column 1: {name} is already on line "
                f"{lines[name]}"
            )
        where = f"{path}, line {line}, column 2"
        if not caption:
            raise InputError(f"{where}: blank")
        caption = _caption(caption, where)
        yield Entry(f"{path}, line {line}", image, "", [caption])


def _caption(caption: str, where: str) -> str:
    """The caption itself; refused if it is a number, or stands for nothing."""
    if not any(map(str.isalpha, caption)) or _NOTHING.fullmatch(caption.casefold()):
        raise InputError(f"{where}: {caption[:40]!r} is no caption")
    return caption
