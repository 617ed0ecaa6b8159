"""A person's own images and captions, turned into a data root.

config.data.source is a caption table (`caption_table`) or a folder that holds one as
captions.csv, captions.tsv or captions.txt. Image names are relative to the table's
folder.

Without a column `split`, a hash of its name puts an image into train, dev or test
(8 : 1 : 1), the same one whatever else is added later.
"""

import hashlib
import os
import shutil
from collections.abc import Collection
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
class _Image:
    name: str  # as the table writes it
    split: str
    line: int  # of the table that first names it
    captions: list[str] = field(default_factory=list)


def prepare(config: Config) -> None:
    """Makes config.data.root from config.data.source.

    Images are hard links if the file system allows it, else copies. Every one is
    decoded once, so that a broken file is found now and not in the middle of training
    (config.data.on_bad_image = 'skip' leaves it out and says so).

    Raises:
        InputError: names the file, and the line or field, that is wrong.
    """
    assert config.data.source is not None
    source = _caption_file(Path(config.data.source))
    found: dict[str, _Image] = {}
    for line, name, given, captions in read_caption_table(source):
        split = given or _hashed_split(name)
        image = found.setdefault(name, _Image(name, split, line))
        if image.split != split:
            raise InputError(
                f"{source}, line {line}, column 'split': {name} is in {split!r}, on "
                f"line {image.line} in {image.split!r}"
            )
        image.captions += captions
    images = _readable(found.values(), source, config.data.on_bad_image == "skip")

    splits = {image.split for image in images}
    for split in SPLITS:
        if split not in splits:
            raise InputError(
                f"{source}: split {split!r} gets none of the {len(images)} images; "
                "add a column 'split'"
            )

    # Below the image folder each gets its own path, without what leads out of there.
    paths: dict[str, str] = {}
    owners: dict[str, str] = {}
    for image in images:
        path = Path(image.name)
        inside = "/".join(p for p in path.parts if p not in ("..", path.anchor))
        paths[image.name] = inside
        if (owner := owners.setdefault(inside, image.name)) != image.name:
            raise InputError(
                f"{source}, line {image.line}: {image.name} and {owner} would both "
                f"become {inside}"
            )

    root = Path(config.data.root)
    dataset.claim_root(root, str(source.resolve()))
    folder = root / dataset.image_folder(config.data.name)
    for name, inside in progress(paths.items(), "linking images", unit="images"):
        _link_or_copy(source.parent / name, folder / inside)
    rows = {
        split: [(x.name, x.captions) for x in images if x.split == split]
        for split in SPLITS
    }
    dataset.write_root(root, rows, paths)


def _caption_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder (config.data.source)")
    names = ("captions.csv", "captions.tsv", "captions.txt")
    found = [name for name in names if (source / name).is_file()]
    if not found:
        raise InputError(f"{source}: holds no {', '.join(names[:-1])} or {names[-1]}")
    if len(found) > 1:
        raise InputError(
            f"{source}: holds {' and '.join(found)}; name one with config.data.source"
        )
    return source / found[0]


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def _readable(images: Collection[_Image], source: Path, skip: bool) -> list[_Image]:
    """The images that decode; without `skip`, one that does not is an error."""

    def problem(image: _Image) -> str:
        try:
            load_image(source.parent / image.name)
        except InputError as error:
            return f"{error}, named on line {image.line} of {source}"
        return ""

    good = []
    with ThreadPoolExecutor() as pool:
        problems = pool.map(problem, images)
        told = progress(problems, "checking images", len(images), "images")
        for image, text in zip(images, told, strict=True):
            if text and not skip:
                pool.shutdown(cancel_futures=True)
                raise InputError(text)
            if text:
                logging.warning("left out: %s", text)
            else:
                good.append(image)
    return good


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
