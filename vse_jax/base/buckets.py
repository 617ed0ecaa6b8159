"""Paths in buckets, gs://bucket/… and s3://bucket/…, by fsspec's file systems.

An object is written by one request, whole or not at all. There are no folders: one is
there as soon as an object's name begins with its own, and `mkdir` does nothing.

The libraries try a request that fails again, six times or so in a minute; one that gets
no answer fails after `SILENCE` seconds. What then still fails is an OSError that names
the object, as a disk's is.
"""

import concurrent.futures
import contextlib
import errno
import fnmatch
import functools
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from vse_jax.base.errors import InputError
from vse_jax.base.extras import require_extra

EXTRA_OF = {"gs": "gcs", "s3": "s3"}  # by scheme
SILENCE = 20  # seconds
UNFINISHED = ".unfinished"  # object in a folder that is being written: `whole_objects`
COPY_EVERY = 30.0  # seconds, of files that grow: `FolderCopy`


@epath.register_path_cls([f"{scheme}://" for scheme in EXTRA_OF])
class BucketPath(epath.gpath.PosixGPath):
    """A path in a bucket; epath.Path("gs://…") makes one, also inside of libraries.

    epath's own takes a service that does not answer for a folder that is not there,
    and what was written before an error for a whole file.
    """

    @property
    def service(self) -> fsspec.AbstractFileSystem:
        """fsspec's file system of the bucket."""
        return _service(str(self).partition("://")[0])

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def iterdir(self) -> Iterator["BucketPath"]:
        with _named(self):
            names = self.service.ls(str(self), detail=False)
        own = str(self).partition("://")[2].rstrip("/")
        for name in names:
            if name.rstrip("/") != own:  # a service may name the folder itself
                yield self / name.rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """What has a name of this pattern: of its last part, the others are folders."""
        folder, _, pattern = pattern.rpartition("/")
        found: list[BucketPath] = []
        with contextlib.suppress(FileNotFoundError):
            found += (self / folder if folder else self).iterdir()
        return (path for path in found if fnmatch.fnmatch(path.name, pattern))

    def files(self) -> list["BucketPath"]:
        """All objects below this folder."""
        with _named(self):
            names = self.service.find(str(self))
        scheme = str(self).partition("://")[0]
        return [BucketPath(f"{scheme}://{name}") for name in names]

    def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: an object's name is enough."""

    def read_bytes(self) -> bytes:
        with _named(self):
            return self.service.cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "r", **_) -> Any:
        """To read it; what an error interrupts in a write would become an object."""
        if not mode.startswith("r"):
            raise ValueError(f"{self}: an object is written by write_bytes or upload")
        with _named(self):
            file = io.BufferedReader(self.service.open(str(self), "rb"))
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def stat(self) -> Any:
        """As epath's: length in bytes, is_directory."""
        with _named(self):
            return super().stat()

    def write_bytes(self, data: bytes) -> int:
        with _named(self, writes=True):
            self.service.pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding=None, errors=None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> None:
        """Writes an object that is not there; FileExistsError: it is."""
        with _named(self, writes=True):
            self.service.pipe_file(str(self), data, mode="create")

    def upload(self, file: Path) -> None:
        """Writes the content of a local file."""
        with _named(self, writes=True):
            self.service.put_file(str(file), str(self))

    def download(self, file: Path) -> None:
        """Writes the object into a local file."""
        with _named(self):
            self.service.get_file(str(self), str(file))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _named(self):
                self.service.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        files = self.files()
        if not files and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda file: file.unlink(missing_ok=True), files))

    def modified(self) -> float:
        """When the object was written: seconds since 1970, by the service's clock."""
        with _named(self):
            return self.service.modified(str(self)).timestamp()

    def _info(self) -> dict[str, Any] | None:
        """What the service says of the object or folder; None: it is not there."""
        try:
            with _named(self):
                return self.service.info(str(self))
        except FileNotFoundError:
            return None


def bucket_path(name: str, field: str) -> BucketPath:
    """The path of a URL; `field` (--workdir, …) is what named it.

    Raises:
        InputError: of another kind, or the package for it is not installed.
    """
    scheme, _, rest = name.partition("://")
    if scheme not in EXTRA_OF:
        known = " nor ".join(f"{scheme}://" for scheme in EXTRA_OF)
        raise InputError(f"{field}: {name}: neither a folder nor {known}")
    if not rest.strip("/"):
        raise InputError(f"{field}: {name}: names no bucket")
    require_extra(f"{field}: {name}", EXTRA_OF[scheme])
    return BucketPath(name.rstrip("/"))


@functools.cache
def _service(scheme: str) -> fsspec.AbstractFileSystem:
    # TensorStore, which reads and writes the arrays of checkpoints, has its own client.
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", str(SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    # Others write to the bucket, too: no listing is remembered.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs":
        import aiohttp  # noqa: PLC0415 (comes with the extra)

        silence = aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)
        options["requests_timeout"] = silence
    else:
        retries = {"mode": "standard", "max_attempts": 6}
        options["config_kwargs"] = {"retries": retries, "read_timeout": SILENCE}
    fsspec.config.conf[scheme] = options  # epath makes one of its own
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def _named(path: BucketPath, writes: bool = False) -> Iterator[None]:
    """Each library has exceptions of its own: they become OSErrors with the path."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        code = errno.EIO
        if isinstance(error, FileNotFoundError):
            code, reason = errno.ENOENT, os.strerror(errno.ENOENT)
            if writes:
                bucket = str(path).partition("://")[2].partition("/")[0]
                reason = f"there is no bucket {bucket!r}"
        elif isinstance(error, PermissionError) or "Forbidden" in reason:
            code, reason = errno.EACCES, f"Permission denied ({reason})"
        raise OSError(code, reason, str(path)) from error


# ---- Files and folders that are made on this machine first ---------------------------


@contextlib.contextmanager
def whole_object(target: BucketPath) -> Iterator[Path]:
    """Gives a local path to write to; its file becomes `target` when all went well."""
    with tempfile.TemporaryDirectory(prefix="vse_jax.") as folder:
        file = Path(folder) / target.name
        yield file
        target.upload(file)


@contextlib.contextmanager
def whole_objects(target: BucketPath) -> Iterator[Path]:
    """Gives a local folder to write into, which replaces `target` when all went well.

    While its files come, the object `UNFINISHED` is among them: `check_whole`.
    """
    with tempfile.TemporaryDirectory(prefix="vse_jax.") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        mark = target / UNFINISHED
        mark.write_bytes(b"")
        new = {
            target / str(file.relative_to(folder)): file
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        for path, file in new.items():
            path.upload(file)
        for path in target.files():
            if path not in new and path != mark:
                path.unlink(missing_ok=True)
        mark.unlink()


def check_whole(folder: BucketPath) -> None:
    """Raises InputError if a folder's files were not all written: `whole_objects`."""
    if (folder / UNFINISHED).exists():
        raise InputError(f"{folder}: was not written to its end; write it again")


@contextlib.contextmanager
def fetched(path: BucketPath) -> Iterator[Path]:
    """A local copy of an object, or of a folder's objects, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="vse_jax.") as temporary:
        copy = Path(temporary) / path.name
        if path.is_file():
            path.download(copy)
        else:
            check_whole(path)
            for file in path.files():
                target = copy / str(file).removeprefix(f"{path}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                file.download(target)
        yield copy


class FolderCopy:
    """A local folder whose files grow, and their copies in a bucket.

    Nothing can be appended to an object: each copy writes it again, in a thread.
    """

    def __init__(self, target: BucketPath):
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="vse_jax.")
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._copying: concurrent.futures.Future[None] | None = None
        self._last = time.monotonic()
        self._sizes: dict[Path, int] = {}  # of the files when they were copied
        self.folder = Path(self._temporary.name)

    def soon(self) -> None:
        """Starts to copy what is new, unless that was less than `COPY_EVERY` ago.

        What cannot be written now is copied the next time.
        """
        if time.monotonic() - self._last < COPY_EVERY:
            return
        if self._copying is None or self._copying.done():
            self._start()

    def now(self) -> None:
        """Returns when all is in the bucket; OSError: it cannot be (names what)."""
        self._start().result()

    def close(self) -> None:
        """As `now`; then the local files go."""
        try:
            self.now()
        finally:
            self._thread.shutdown()
            self._temporary.cleanup()

    def _start(self) -> concurrent.futures.Future[None]:
        if self._copying is not None:
            concurrent.futures.wait([self._copying])
        self._last = time.monotonic()
        self._copying = self._thread.submit(self._copy)
        return self._copying

    def _copy(self) -> None:
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file.stat().st_size != self._sizes.get(file):
                content = file.read_bytes()
                (self._target / str(file.relative_to(self.folder))).write_bytes(content)
                self._sizes[file] = len(content)
