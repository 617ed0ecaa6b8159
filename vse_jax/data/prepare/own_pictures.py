"""A person's own pictures and captions, turned into a data root.

config.data.source is a caption file or a folder that holds captions.csv or
captions.txt. Picture names are relative to the caption file's folder. Two forms:

    a CSV whose header has `image` and either `caption` (a line per caption) or
    caption1 … captionN (a line per picture), and perhaps `split` (train, dev, test);

    Flickr30k's: a line per caption, `name.jpg#0<TAB>caption` or `name.jpg<TAB>caption`.

Without `split`, a hash of its name puts a picture into train, dev or test (8 : 1 : 1),
the same one whatever else is added later.
"""

import csv
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_lines
from vse_jax.base.progress import progress
from vse_jax.data import layout
from vse_jax.data.images import load_image

SPLITS = ("train", "dev", "test")


@dataclass
class _Picture:
    name: str  # as the caption file writes it
    split: str
    line: int  # where the caption file first names it
    captions: list[str] = field(default_factory=list)


def prepare(config: ConfigDict) -> None:
    """Makes config.data.root from config.data.source.

    Pictures are hard links where the file system allows it, else copies; every one is
    decoded once, so that a broken file is found now and not in the middle of training
    (config.data.on_bad_image = 'skip' leaves it out and says so).

    Raises:
        InputError: names the file, and the line or field, that is wrong.
    """
    source = _caption_file(Path(config.data.source))
    pictures = _read_captions(source)
    pictures = _readable(pictures, source, config.data.on_bad_image == "skip")
    _check_counts(pictures, source)

    mapping = _places(pictures, source)
    root = Path(config.data.root)
    layout.claim_root(root, str(source.resolve()))
    folder = root / layout.image_folder(config.data.name)
    for picture in progress(pictures, "linking pictures", unit="pictures"):
        _link_or_copy(source.parent / picture.name, folder / mapping[picture.name])
    layout.write_root(
        root,
        {s: [(p.name, p.captions) for p in pictures if p.split == s] for s in SPLITS},
        mapping,
    )


def _caption_file(source: Path) -> Path:
    if source.is_file():
        return source
    for name in ("captions.csv", "captions.txt"):
        if (source / name).is_file():
            return source / name
    if source.is_dir():
        raise InputError(f"{source}: holds no captions.csv or captions.txt")
    raise InputError(f"{source}: no such file or folder (config.data.source)")


def _read_captions(source: Path) -> list[_Picture]:
    lines = read_lines(source)
    header = next(csv.reader(lines[:1]), [])
    rows = _csv_rows(lines, source) if "image" in header else _tab_rows(lines, source)
    pictures: dict[str, _Picture] = {}
    for line, name, split, captions in rows:
        if not name:
            raise InputError(f"{source}, line {line}: no picture name")
        for caption in captions:
            if not caption:
                raise InputError(f"{source}, line {line}: {name} has an empty caption")
        split = split or _hashed_split(name)
        if split not in SPLITS:
            raise InputError(
                f"{source}, line {line}: split {split!r} is none of {', '.join(SPLITS)}"
            )
        picture = pictures.setdefault(name, _Picture(name, split, line))
        if picture.split != split:
            raise InputError(
                f"{source}, line {line}: {name} is in split {split!r}, on line "
                f"{picture.line} in {picture.split!r}"
            )
        picture.captions += captions
    return list(pictures.values())


# (line number, picture name, split or "", captions)
_Row = tuple[int, str, str, list[str]]


def _csv_rows(lines: list[str], source: Path) -> Iterator[_Row]:
    # Strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.DictReader((f"{line}\n" for line in lines), strict=True)
    columns = [
        name for name in reader.fieldnames or () if re.match(r"caption\d*$", name)
    ]
    if not columns:
        raise InputError(f"{source}, line 1: no column 'caption' or 'caption1'")
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{source}, line {reader.line_num}: fields do not match the header"
                )
            captions = [row[column].strip() for column in columns]
            split = (row.get("split") or "").strip()
            yield reader.line_num, row["image"].strip(), split, captions
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num + 1}: {error}") from None


def _tab_rows(lines: list[str], source: Path) -> Iterator[_Row]:
    for line, text in enumerate(lines, 1):
        name, tab, caption = text.partition("\t")
        if not tab:
            raise InputError(
                f"{source}, line {line}: neither 'name<TAB>caption' nor a CSV whose "
                "header has a column 'image'"
            )
        yield line, re.sub(r"#\d+$", "", name.strip()), "", [caption.strip()]


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def _readable(pictures: list[_Picture], source: Path, skip: bool) -> list[_Picture]:
    """The pictures that decode; without `skip`, one that does not is an error."""

    def problem(picture: _Picture) -> str:
        try:
            load_image(source.parent / picture.name)
        except InputError as error:
            return f"{error}, named on line {picture.line} of {source}"
        return ""

    good = []
    with ThreadPoolExecutor() as pool:
        problems = pool.map(problem, pictures)
        for picture, text in zip(
            pictures,
            progress(problems, "checking pictures", len(pictures), "pictures"),
            strict=True,
        ):
            if text and not skip:
                pool.shutdown(cancel_futures=True)
                raise InputError(text)
            if text:
                logging.warning("left out: %s", text)
            else:
                good.append(picture)
    return good


def _check_counts(pictures: list[_Picture], source: Path) -> None:
    first: dict[str, _Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.split, picture)
        if len(picture.captions) != len(other.captions):
            raise InputError(
                f"{source}: {picture.name} has {len(picture.captions)} captions, "
                f"{other.name} {len(other.captions)}; a split needs as many for each"
            )
    for split in SPLITS:
        if split not in first:
            raise InputError(
                f"{source}: split {split!r} gets none of the {len(pictures)} pictures; "
                "add a column 'split'"
            )


def _places(pictures: list[_Picture], source: Path) -> dict[str, str]:
    """Where in the picture folder each goes: its own path, kept below that folder."""
    owners: dict[str, str] = {}
    for picture in pictures:
        path = Path(picture.name)
        place = "/".join(p for p in path.parts if p not in ("..", path.anchor))
        other = owners.setdefault(place, picture.name)
        if other != picture.name:
            raise InputError(
                f"{source}, line {picture.line}: {picture.name} and {other} would both "
                f"become {place}"
            )
    return {name: place for place, name in owners.items()}


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old, new = target.stat(), source.stat()
        if (old.st_size, old.st_mtime) == (new.st_size, new.st_mtime):
            return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
