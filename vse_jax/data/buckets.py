"""Data roots in buckets: read through epath, shards kept in a local folder."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
from etils import epath

from vse_jax.base.buckets import EXTRA_OF
from vse_jax.base.errors import InputError
from vse_jax.base.files import (
    AnyPath,
    any_path,
    lock_file,
    named_in_errors,
    unreadable,
    whole_file,
)
from vse_jax.base.progress import progress

SCHEMES = ("gs", "s3", "az", "hf")
_CHUNK = 2**20  # bytes


def root_path(root: str, field: str = "config.data.root") -> AnyPath:
    """What `field` says as a path: a local one, or a URL such as gs://bucket/coco.

    Raises:
        InputError: an unknown scheme, or one whose package is not installed.
    """
    scheme, separator, _ = root.partition("://")
    if not separator or scheme in EXTRA_OF:
        return any_path(root, field)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise InputError(f"{field}: {root}: neither a folder nor {known}")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise InputError(f"{field}: {root}: {error}") from None
    return epath.Path(root)


def cached_copy(
    folder: AnyPath, files: Mapping[str, tuple[int, str]], cache: str | None
) -> Path:
    """`folder` itself, or where files of a remote folder have been copied to.

    The readers of records need local files. Each is fetched once, checked against its
    SHA-256, and kept below config.data.cache (None: ~/.cache/vse_jax/data).
    `files`: name → (bytes, SHA-256).

    Raises:
        InputError: a file cannot be fetched, or is not the one that was exported.
    """
    if isinstance(folder, Path):
        return folder
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
    target = Path(cache or "~/.cache/vse_jax/data").expanduser() / key
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        # Of a host's processes one fetches and all read. Some network file systems have
        # no locks: then each fetches, which costs time only.
        with contextlib.suppress(OSError):
            lock_file(lock)
        wanted = [
            name
            for name, (size, _) in files.items()
            if not (target / name).is_file() or (target / name).stat().st_size != size
        ]
        for name in progress(wanted, f"fetching {folder}", unit="files"):
            source, copy = folder / name, target / name
            digest = hashlib.sha256()
            # Other hosts, which the lock may not reach, may be fetching it, too.
            with whole_file(copy) as temporary:
                with named_in_errors(copy), temporary.open("wb") as file:
                    for chunk in _chunks(source):
                        digest.update(chunk)
                        file.write(chunk)
                if digest.hexdigest() != files[name][1]:
                    raise InputError(
                        f"{source}: damaged (its SHA-256 is not the export's)"
                    )
    return target


def _chunks(source: AnyPath) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except Exception as error:
        raise unreadable(source, error) from None
