"""The metadata of a Hugging Face image folder: metadata.jsonl, .csv or .parquet.

A row has `file_name`, relative to the metadata's folder, and `text` or `caption` (one
caption) or `captions` (several). An image belongs to the split that one of its folders
is called (train, validation, test), or that a field `split` says.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vse_jax.base.errors import InputError
from vse_jax.base.extras import require_extra
from vse_jax.base.files import parse_object, read_text
from vse_jax.data.prepare.caption_table import read_caption_table
from vse_jax.data.prepare.entry import Entry, check_relative, named_split

_CAPTIONS = ("text", "caption", "captions")


def read_metadata(path: Path, base: Path) -> Iterator[Entry]:
    """The images that a metadata file lists; `base`: the folder of the source.

    Raises:
        InputError: names the file, and the line or row, that is wrong; Parquet needs
            the package pyarrow.
    """
    folder = PurePosixPath(path.parent.relative_to(base))
    for entry in _entries(path):
        name = PurePosixPath(check_relative(entry.image, entry.where))
        parents = [*folder.parts, *name.parts[:-1]]
        of_folders = next(filter(None, map(named_split, parents)), "")
        yield entry._replace(image=f"{folder / name}", split=entry.split or of_folders)


def _entries(path: Path) -> Iterator[Entry]:
    """With names as they are in the file."""
    if path.suffix == ".csv":
        yield from read_caption_table(path)
        return
    for where, row in _rows_of_parquet(path) if _is_parquet(path) else _lines(path):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise InputError(f"{where}: no 'file_name' that is a text")
        found = next((row[field] for field in _CAPTIONS if row.get(field)), None)
        captions = [found] if isinstance(found, str) else found
        if not isinstance(captions, list) or not all(
            isinstance(caption, str) and caption.strip() for caption in captions
        ):
            raise InputError(f"{where}: no caption in {', '.join(_CAPTIONS)}")
        yield Entry(where, name, named_split(str(row.get("split") or "")), captions)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield where, parse_object(line, where)


def _rows_of_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    require_extra(path, "parquet")
    from pyarrow import parquet  # noqa: PLC0415 (optional)

    try:
        with parquet.ParquetFile(path) as file:
            columns = {"file_name", "split", *_CAPTIONS} & set(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=sorted(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ValueError, OSError) as error:  # as pyarrow's own are
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
