"""A person's own pictures and captions, turned into a data root.

config.data.source is a caption table (`caption_table`) or a folder that holds one as
captions.csv, captions.tsv or captions.txt. Image names are relative to the table's
folder.

Without a column `split`, a hash of its name puts an image into train, dev or test
(8 : 1 : 1), the same one whatever else is added later.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import whole_file
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data import dataset
from vse_jax.data.images import load_image
from vse_jax.data.prepare.caption_table import SPLITS, read_caption_table


@dataclass
class _Picture:
    name: str  # as the caption file writes it
    split: str
    line: int  # where the caption file first names it
    captions: list[str] = field(default_factory=list)


def prepare(config: Config) -> None:
    """Makes config.data.root from config.data.source.

    Pictures are hard links where the file system allows it, else copies; every one is
    decoded once, so that a broken file is found now and not in the middle of training
    (config.data.on_bad_image = 'skip' leaves it out and says so).

    Raises:
        InputError: names the file, and the line or field, that is wrong.
    """
    assert config.data.source is not None
    source = _caption_file(Path(config.data.source))
    pictures = _read_captions(source)
    pictures = _readable(pictures, source, config.data.on_bad_image == "skip")
    _check_counts(pictures, source, equal_captions=config.data.equal_captions)

    mapping = _places(pictures, source)
    root = Path(config.data.root)
    dataset.claim_root(root, str(source.resolve()))
    folder = root / dataset.image_folder(config.data.name)
    for picture in progress(pictures, "linking pictures", unit="pictures"):
        _link_or_copy(source.parent / picture.name, folder / mapping[picture.name])
    dataset.write_root(
        root,
        {s: [(p.name, p.captions) for p in pictures if p.split == s] for s in SPLITS},
        mapping,
    )


def _caption_file(source: Path) -> Path:
    if source.is_file():
        return source
    names = ("captions.csv", "captions.tsv", "captions.txt")
    found = [name for name in names if (source / name).is_file()]
    if len(found) == 1:
        return source / found[0]
    if found:
        raise InputError(
            f"{source}: holds {' and '.join(found)}; name one with config.data.source"
        )
    if source.is_dir():
        raise InputError(f"{source}: holds no {', '.join(names[:-1])} or {names[-1]}")
    raise InputError(f"{source}: no such file or folder (config.data.source)")


def _read_captions(source: Path) -> list[_Picture]:
    pictures: dict[str, _Picture] = {}
    for line, name, given, captions in read_caption_table(source):
        split = given or _hashed_split(name)
        picture = pictures.setdefault(name, _Picture(name, split, line))
        if picture.split != split:
            raise InputError(
                f"{source}, line {line}, column 'split': {name} is in {split!r}, on "
                f"line {picture.line} in {picture.split!r}"
            )
        picture.captions += captions
    return list(pictures.values())


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


def _check_counts(
    pictures: list[_Picture], source: Path, *, equal_captions: bool
) -> None:
    first: dict[str, _Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.split, picture)
        if len(picture.captions) != len(other.captions):
            raise InputError(
                f"{source}, line {picture.line}: {picture.name} has "
                f"{len(picture.captions)} captions, {other.name} "
                f"{len(other.captions)}; a split needs as many for each"
            )
    for split in SPLITS:
        if split not in first:
            raise InputError(
                f"{source}: split {split!r} gets none of the {len(pictures)} pictures; "
                "add a column 'split'"
            )
    if equal_captions:
        counts = {split: len(first[split].captions) for split in SPLITS}
        dataset.check_equal_captions(counts, str(source))


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
    with whole_file(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, temporary)
