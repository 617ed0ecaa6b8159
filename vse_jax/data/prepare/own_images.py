"""Images and captions that people hold, turned into a data root.

Whatever the source (`sources`), its images come as the same entries and go the same
way: grouped by id, looked for, decoded once, linked or copied, and listed.

Where the source tells no split, a hash of its id puts an image into train, dev or test
(8 : 1 : 1), the same one whatever else is added later.
"""

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, whole_file
from vse_jax.base.progress import progress
from vse_jax.config import Config, takes_regions
from vse_jax.data import dataset
from vse_jax.data.images import ImageBytes, load_image
from vse_jax.data.prepare.entry import SPLITS, Entry
from vse_jax.data.prepare.sources import read_entries

_AT_ONCE = 256  # entries in memory with the content of their images


@dataclass
class _Image:
    image_id: str
    name: str  # the path of its file, as the source writes it
    split: str
    where: str  # the source first names it
    captions: list[str] = field(default_factory=list)
    is_stored: bool = False  # below the root's image folder already


def prepare(config: Config, base: AnyPath, files: Sequence[AnyPath]) -> None:
    """Makes config.data.root of the files of config.data.source.

    Images are looked for beside the source, then in config.data.images. They are hard
    links if the file system allows it, else copies; those in tars are written as they
    are read. Every one is decoded once, so that a broken file is found now and not in
    the middle of training (config.data.on_bad_image = 'skip' leaves it out and says
    so). Region models need no images: those that are there serve figures.

    The lists are written last: without them there is no data set.

    Args:
        config: of the run.
        base, files: of `sources.source_files`.

    Raises:
        InputError: names the file, and the line or field, that is wrong.
    """
    root, source = Path(config.data.root), files[0] if len(files) == 1 else base
    owner = str(source.resolve())
    folder = root / dataset.image_folder(config.data.name)
    skip = config.data.on_bad_image == "skip"
    images: dict[str, _Image] = {}
    entries = read_entries(base, files)
    store = functools.partial(_store, folder=folder, skip=skip)
    with ThreadPoolExecutor() as pool:
        while some := list(itertools.islice(entries, _AT_ONCE)):
            if not images and some[0].content is not None:
                dataset.claim_root(root, owner)
            for entry, is_good in zip(some, pool.map(store, some), strict=True):
                if is_good:
                    _add(images, entry)
    folders = [base] if isinstance(base, Path) else []
    folders += [Path(config.data.images)] if config.data.images is not None else []
    found = {
        image.image_id: _find(image, folders)
        for image in images.values()
        if not image.is_stored
    }
    if takes_regions(config.image):
        found = {image_id: path for image_id, path in found.items() if path.is_file()}
    else:
        for image in _unreadable(images.values(), found, skip):
            del images[image.image_id], found[image.image_id]

    splits = {image.split for image in images.values()}
    for split in SPLITS:
        if not any(name.startswith(split) for name in splits):
            raise InputError(
                f"{source}: split {split!r} gets none of the {len(images)} images; "
                "add a column 'split'"
            )

    # Below the image folder each gets its own path.
    paths: dict[str, str] = {}
    owners: dict[str, _Image] = {}
    for image in images.values():
        inside = paths[image.image_id] = _inside(image.name)
        if (other := owners.setdefault(inside, image)) is not image:
            raise InputError(
                f"{image.where}: {image.name} and {other.name} would both become "
                f"{inside}"
            )
    dataset.claim_root(root, owner)
    for image_id, path in progress(found.items(), "linking images", unit="images"):
        _link_or_copy(path, folder / paths[image_id])
    rows: dict[str, list[tuple[str, list[str]]]] = {}
    for image in images.values():
        rows.setdefault(image.split, []).append((image.image_id, image.captions))
    dataset.write_root(root, rows, paths)
    for split, listed in rows.items():
        captions = sum(len(captions) for _, captions in listed)
        print(f"{root}: {split}: {len(listed):,} images, {captions:,} captions")


def _store(entry: Entry, folder: Path, skip: bool) -> bool:
    """Writes the image of an entry that holds its content; whether it is good."""
    if entry.content is None:
        return True
    try:
        load_image(ImageBytes(entry.where, entry.content))
    except InputError as error:
        if not skip:
            raise
        logging.warning("left out: %s", error)
        return False
    path = folder / _inside(entry.image)
    if not path.exists() or path.stat().st_size != len(entry.content):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(entry.content)
    return True


def _add(images: dict[str, _Image], entry: Entry) -> None:
    """Adds an entry's captions to those of its image."""
    image_id = entry.image_id or entry.image
    if image_id != " ".join(image_id.split()):
        raise InputError(f"{entry.where}: {image_id!r} is no image id that fits a line")
    split = entry.split or _hashed_split(image_id)
    stored = entry.content is not None
    image = images.setdefault(
        image_id, _Image(image_id, entry.image, split, entry.where, is_stored=stored)
    )
    if image.split != split:
        raise InputError(
            f"{entry.where}: {image_id} is in {split!r}, but in {image.split!r} at "
            f"{image.where}"
        )
    if image.name != entry.image:
        raise InputError(
            f"{entry.where}: image id {image_id!r} is {entry.image}, but {image.name} "
            f"at {image.where}"
        )
    image.captions += entry.captions


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def _inside(name: str) -> str:
    """The path of an image below the image folder, without what leads out of there."""
    path = Path(name)
    return "/".join(part for part in path.parts if part not in ("..", path.anchor))


def _find(image: _Image, folders: Sequence[Path]) -> Path:
    """The first file that is there; else what it should be called.

    In config.data.images it may lie without its own folders.
    """
    places = [folder / image.name for folder in folders]
    places += [folder / Path(image.name).name for folder in folders[1:]]
    return next((path for path in places if path.is_file()), places[0])


def _unreadable(
    images: Collection[_Image], found: dict[str, Path], skip: bool
) -> list[_Image]:
    """The images that do not decode; without `skip`, the first is an error."""
    wanted = [image for image in images if image.image_id in found]

    def problem(image: _Image) -> str:
        try:
            load_image(found[image.image_id])
        except InputError as error:
            text = f"{error}, named at {image.where}"
            if not found[image.image_id].is_file():
                text += "; config.data.images can name another folder"
            return text
        return ""

    bad = []
    with ThreadPoolExecutor() as pool:
        problems = pool.map(problem, wanted)
        told = progress(problems, "checking images", len(wanted), "images")
        for image, text in zip(wanted, told, strict=True):
            if text and not skip:
                pool.shutdown(cancel_futures=True)
                raise InputError(text)
            if text:
                logging.warning("left out: %s", text)
                bad.append(image)
    return bad


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
