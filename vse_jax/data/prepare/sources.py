"""What people hold, told by its content: which reader reads config.data.source."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.data.buckets import root_path
from vse_jax.data.prepare.caption_json import read_caption_json
from vse_jax.data.prepare.caption_table import read_caption_table
from vse_jax.data.prepare.entry import Entry
from vse_jax.data.prepare.image_folder import read_metadata
from vse_jax.data.prepare.region_tsv import is_region_row
from vse_jax.data.prepare.tar_shards import read_tars
from vse_jax.data.regions import FILE_KINDS

# What a folder is looked through for. Of the first kinds, one file is read; of the
# others all are, since splits and shards come as several files.
_ONE = {
    "a caption table": ("captions.csv", "captions.tsv", "captions.txt"),
    "Flickr30k's captions": ("results.csv", "results*.token"),
    "Karpathy's splits": ("dataset_*.json",),
}
_MANY = {
    "COCO's captions": ("captions_*.json",),
    "metadata": ("metadata.jsonl", "metadata.csv", "metadata.parquet"),
    "metadata of splits": tuple(
        f"{folder}metadata.{ending}"
        for folder in ("*/", "*/*/")
        for ending in ("jsonl", "csv", "parquet")
    ),
    "tars": ("*.tar",),
    "region features": ("*.tsv", "*.tsv.[0-9]"),
}
_OTHERS = FILE_KINDS | {
    b"\x93NUMPY": "a NumPy array",
    b"\xff\xd8": "an image",
    b"\x89PNG": "an image",
}


def source_files(source: str) -> tuple[AnyPath, list[AnyPath]]:
    """The folder of config.data.source, and the files in it that are read.

    `source` is a file, a folder, or tars as 'DIR/{00000..00099}.tar'.

    Raises:
        InputError: there is no such file, or nothing that is known in the folder, or
            files that do not belong together.
    """
    path = root_path(source, "config.data.source")
    if shards := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name):
        begin, first, last, end = shards.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{begin}{n:0{len(first)}}{end}" for n in numbers]
        return path.parent, [path.parent / name for name in names]
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise InputError(f"{source}: no such file or folder (config.data.source)")
    found: dict[str, list[AnyPath]] = {}
    for kind, patterns in {**_ONE, **_MANY}.items():
        there = {file for pattern in patterns for file in path.glob(pattern)}
        there -= {file for files in found.values() for file in files}
        if there:
            found[kind] = sorted(there)
    if not found:
        names = [name for patterns in {**_ONE, **_MANY}.values() for name in patterns]
        names = [name for name in names if "/" not in name]
        raise InputError(f"{path}: holds no {', '.join(names[:-1])} or {names[-1]}")
    kind, files = next(iter(found.items()))
    if len(found) > 1 or (kind in _ONE and len(files) > 1):
        firsts = files if kind in _ONE else files[:1]
        others = [files[0] for files in list(found.values())[1:]]
        named = " and ".join(file.name for file in (*firsts, *others))
        raise InputError(f"{source}: holds {named}; name one with config.data.source")
    return path, files


def holds_regions(files: Sequence[AnyPath]) -> bool:
    """Whether the files are a detector's region features."""
    if is_tar(files[0]):
        return False
    with files[0].open("rb") as file:
        return is_region_row(file.readline(2**25))


def read_entries(folder: AnyPath, files: Sequence[AnyPath]) -> Iterator[Entry]:
    """The images and captions of a source, by `source_files`.

    Raises:
        InputError: a file of no known kind, or one that its reader refuses.
    """
    if is_tar(files[0]):
        yield from read_tars(files)
        return
    for path in files:
        if not isinstance(path, Path) or not isinstance(folder, Path):
            raise InputError(f"{path}: only tars are read from a bucket; copy it here")
        with path.open("rb") as file:
            head = file.read(2**16)
        other = next(
            (what for sign, what in _OTHERS.items() if head.startswith(sign)), ""
        )
        if other:
            raise InputError(f"{path}: {other}, which is not read")
        begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if (
            head.startswith(b"PAR1")
            or path.name == "metadata.csv"
            or path.suffix == ".jsonl"
        ):
            yield from read_metadata(path, folder)
        elif begin[:1] in (b"{", b"["):
            yield from read_caption_json(path)
        else:
            yield from read_caption_table(path)


def is_tar(path: AnyPath) -> bool:
    """By its name, since it may be missing or damaged; or by its content."""
    if path.suffix == ".tar":
        return True
    with path.open("rb") as file:
        return file.read(512)[257:262] == b"ustar"
