"""The index of an export: its files with their sizes and digests.

    <root>/array_record/<split>.json       one for each split, written last
    <root>/tfds/image_text/1.0.0/…         the same for a TFDS data set

A file's size is checked whenever a split is opened, its SHA-256 by --mode=export and by
every download.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, file_size, read_bytes

FORMATS = ("array_record", "tfds")
FOLDERS = {"array_record": "array_record", "tfds": "tfds/image_text/1.0.0"}
VERSION = 1


@dataclass(frozen=True)
class StoredFile:
    """A file of an export: `records` is 0 for what is no shard."""

    name: str
    size: int  # bytes
    sha256: str
    records: int


@dataclass(frozen=True)
class Index:
    """What <split>.json holds."""

    version: int
    kind: str  # config.image.kind: grid (picture files) or region (features)
    images: int
    region_shape: tuple[int, ...]  # (regions, features) of every record; () for grid
    source: str  # digest of the files that the records were made from
    texts: dict[str, str]  # name → SHA-256 of the lists in precomp/
    files: tuple[StoredFile, ...]  # the shards in order, then others

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @property
    def shards(self) -> list[StoredFile]:
        return [file for file in self.files if file.records]


def read_index(path: AnyPath) -> Index:
    """Reads an index.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    try:
        data = read_bytes(path)
    except InputError as error:
        raise InputError(f"{error}; --mode=export writes it") from None
    try:
        fields = json.loads(data)
        files = tuple(StoredFile(**file) for file in fields.pop("files"))
        shape = tuple(fields.pop("region_shape"))
        index = Index(**fields, files=files, region_shape=shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no index of an export ({error})") from None
    if index.version != VERSION:
        raise InputError(
            f"{path}: version {index.version}; this program reads {VERSION}"
        )
    return index


def list_names(split: str) -> tuple[str, str]:
    """Names of the two text files of a split, below precomp/."""
    return f"{split}_ids.txt", f"{split}_caps.txt"


def list_digests(root: AnyPath, split: str) -> dict[str, str]:
    """Name → SHA-256 of the text files of a split."""
    return {
        name: hashlib.sha256(read_bytes(root / "precomp" / name)).hexdigest()
        for name in list_names(split)
    }


def check_size(folder: AnyPath, file: StoredFile) -> None:
    """Raises InputError unless a file of an export is there in full length."""
    size = file_size(folder / file.name)
    if size != file.size:
        raise InputError(
            f"{folder / file.name}: {size} bytes, but {file.size} were exported"
        )
