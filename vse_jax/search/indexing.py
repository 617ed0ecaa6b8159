"""Brings an index in line with a folder: only new and changed pictures are encoded."""

import collections
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np

from vse_jax.base.errors import InputError
from vse_jax.base.progress import progress
from vse_jax.data.images import PictureBytes
from vse_jax.search import pictures
from vse_jax.search.encoder import Encoder
from vse_jax.search.store import File, NewPicture, Store

_LARGEST = 2**30  # bytes of a file that is read
_AHEAD = 64  # files that are hashed ahead
_LINKS = 1000  # files of known content that are noted together
_NOTHING = np.zeros((1, 1, 3), np.uint8)  # stands in for a picture that is bad


@dataclass
class Report:
    """What an update did, in files.

    Attributes:
        added: new ones of new content.
        changed: known ones of other content.
        renamed: new ones of a content whose other file is gone.
        duplicates: new ones of a content that another file has.
        removed: known ones that are gone, without the renamed.
        encoded: pictures that went through the model.
        bad: (path, reason) of each that is no readable picture.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    duplicates: int = 0
    removed: int = 0
    encoded: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


class _Seen(NamedTuple):
    """A picture file, by what its folder says of it."""

    path: str  # relative, with slashes
    bytes: int
    modified: int  # nanoseconds


def check_model(store: Store, model: Encoder) -> None:
    """Raises InputError unless `model` made the vectors of `store`."""
    # Indexes outlive versions: an earlier one made another fingerprint of this model.
    if store.model == model.fingerprint or store.model == getattr(
        model, "earlier_fingerprint", None
    ):
        return
    raise InputError(
        f"{store.index}: index of another model ({store.model_name!r}, not "
        f"{model.name!r} as it is now): its weights, vocabulary or settings differ; "
        "name another --config.search.index"
    )


def check_pictures(folder: Path, exclude: Sequence[str] = ()) -> None:
    """Raises InputError unless there is a picture in the folder, be it a bad one."""
    if next(pictures.walk(folder, exclude), None) is None:
        raise InputError(f"{folder}: no pictures in this folder")


def update(
    store: Store,
    model: Encoder,
    *,
    exclude: Sequence[str] = (),
    max_pixels: int = pictures.MAX_PIXELS,
    batch: int = 32,
) -> Report:
    """Makes the index tell what `store.folder` holds now.

    A file of the size and time that the index knows is taken for unchanged. Of the
    others the hash of the content decides: what is known is noted, what is new is
    encoded and kept in batches of `batch` pictures, each decoded while the one before
    is encoded. What is gone leaves the index at the end, so that a renamed file is
    known by its content.

    Raises:
        InputError: no such folder, no picture in it, or an index of another model.
    """
    check_model(store, model)
    folder = pictures.check_folder(store.folder)
    report = Report()
    check_pictures(folder, exclude)
    found = _scan(folder, exclude, report)
    before = store.files()
    fresh = [seen for seen in found if seen != before.get(seen.path, ())[:3]]
    run = _Run(store, model, folder, max_pixels, report)
    for _ in progress(run.steps(fresh, batch), "index", len(fresh), "pictures"):
        pass
    after = {seen.path for seen in found} - {path for path, _ in report.bad}
    gone = before.keys() - after
    if gone or fresh:
        store.forget(gone)
        store.compact()
        _count(report, before, store.files())
    return report


def _scan(folder: Path, exclude: Sequence[str], report: Report) -> list[_Seen]:
    """The picture files; folders and names that cannot be read go to the report."""

    def unlisted(error: OSError) -> None:
        path = os.path.relpath(error.filename, folder)
        report.bad.append((_printable(path), error.strerror or str(error)))

    found = []
    for path in pictures.walk(folder, exclude, unlisted):
        relative = path.relative_to(folder).as_posix()
        if _printable(relative) != relative:
            report.bad.append((_printable(relative), "its name is not UTF-8"))
            continue
        try:
            facts = path.lstat()
        except FileNotFoundError:  # meanwhile
            continue
        found.append(_Seen(relative, facts.st_size, facts.st_mtime_ns))
    return found


def _printable(path: str) -> str:
    """The path, with the bytes of its name that are not UTF-8 escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def _read(folder: Path, path: str) -> tuple[File, PictureBytes]:
    """A file's content and what is kept of it.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    try:
        with (folder / path).open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > _LARGEST:
                raise InputError(f"{path}: larger than {_LARGEST / 2**30:.0f} GiB")
            picture = PictureBytes(path, file.read(_LARGEST))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    sha256 = hashlib.sha256(picture.data).hexdigest()
    return File(path, facts.st_size, facts.st_mtime_ns, sha256), picture


class _Batch(Sequence[np.ndarray]):
    """Pictures as the model takes them, each decoded when the model asks for it.

    So a large picture is in memory only until it has the model's size. All but the last
    may be had before the batch `before` is kept: what is lost with a killed process is
    never more than one batch.
    """

    def __init__(
        self, folder: Path, files: list[File], max_pixels: int, before: Event
    ) -> None:
        self.files, self.kept = files, Event()
        self.outcomes: list[NewPicture | InputError | None] = [None] * len(files)
        self._folder, self._max_pixels, self._before = folder, max_pixels, before

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at):
        if at == len(self) - 1:
            self._before.wait()
        file = self.files[at]
        try:
            now, content = _read(self._folder, file.path)
            if now.sha256 != file.sha256:
                raise InputError(f"{file.path}: changed while it was read")
            picture = pictures.read_picture(content, self._max_pixels)
        except InputError as error:
            self.outcomes[at] = error
            return _NOTHING
        facts = picture.width, picture.height, picture.taken, picture.camera
        self.outcomes[at] = NewPicture(file, *facts)
        return picture.pixels


class _Run:
    """One update, while it goes on."""

    def __init__(
        self,
        store: Store,
        model: Encoder,
        folder: Path,
        max_pixels: int,
        report: Report,
    ) -> None:
        self._store, self._model, self._folder = store, model, folder
        self._max_pixels, self._report = max_pixels, report
        self._coming: set[str] = set()  # contents that are on their way to the store
        self._failed: dict[str, str] = {}  # contents that are no pictures, and why
        self._links: list[File] = []  # files of a content that is known or coming
        self._settled = 0  # files that are dealt with and not yet told of

    def steps(self, fresh: Sequence[_Seen], size: int) -> Iterator[None]:
        """Indexes these files; yields once for each."""
        last = Event()
        last.set()
        waiting: collections.deque[tuple[_Batch, Future[np.ndarray]]]
        waiting = collections.deque()
        with ThreadPoolExecutor(2) as encoders:
            try:
                for files in self._batches(fresh, size):
                    if files:
                        batch = _Batch(self._folder, files, self._max_pixels, last)
                        encoding = encoders.submit(self._model.encode_images, batch)
                        waiting.append((batch, encoding))
                        last = batch.kept
                    while len(waiting) > 1:
                        yield from self._keep(*waiting.popleft())
                    yield from self._link()
                while waiting:
                    yield from self._keep(*waiting.popleft())
                yield from self._link()
            finally:  # whatever happens, no thread waits for ever
                for batch, _ in waiting:
                    batch.kept.set()

    def _batches(self, fresh: Sequence[_Seen], size: int) -> Iterator[list[File]]:
        """The files of new content, in batches; the others are linked or refused."""
        batch: list[File] = []
        for path, file in self._hashed(fresh):
            if isinstance(file, InputError):
                self._refuse(path, file)
            elif file.sha256 in self._coming or self._store.find(file.sha256):
                self._links.append(file)
            else:
                self._coming.add(file.sha256)
                batch.append(file)
            if len(batch) == size:
                yield batch
                batch = []
            elif len(self._links) >= _LINKS:
                yield []
        yield batch

    def _hashed(
        self, fresh: Sequence[_Seen]
    ) -> Iterator[tuple[str, File | InputError]]:
        """Reads the files ahead, in their order."""

        def file(path: str) -> File | InputError:
            try:
                return _read(self._folder, path)[0]
            except InputError as error:
                return error

        with ThreadPoolExecutor(os.cpu_count()) as readers:
            for start in range(0, len(fresh), _AHEAD):
                paths = [seen.path for seen in fresh[start : start + _AHEAD]]
                yield from zip(paths, readers.map(file, paths), strict=True)

    def _keep(self, batch: _Batch, encoding: Future[np.ndarray]) -> Iterator[None]:
        """Adds a batch to the store, as soon as it is encoded."""
        try:
            vectors = encoding.result()
            new = {
                at: x
                for at, x in enumerate(batch.outcomes)
                if isinstance(x, NewPicture)
            }
            if new:
                self._store.add(list(new.values()), vectors[list(new)])
        finally:
            batch.kept.set()
        self._report.encoded += len(new)
        self._settled += len(new)
        for file, outcome in zip(batch.files, batch.outcomes, strict=True):
            self._coming.remove(file.sha256)
            if isinstance(outcome, InputError):
                self._failed[file.sha256] = self._refuse(file.path, outcome)
        yield from self._link()

    def _link(self) -> Iterator[None]:
        """Notes the files whose content the store has by now; tells what is settled."""
        ready = [file for file in self._links if file.sha256 not in self._coming]
        self._links = [file for file in self._links if file.sha256 in self._coming]
        good = [file for file in ready if file.sha256 not in self._failed]
        for file in ready:
            if reason := self._failed.get(file.sha256):
                self._refuse(file.path, InputError(reason))
        if good:
            self._store.link(good)
        for _ in range(self._settled + len(good)):
            yield
        self._settled = 0

    def _refuse(self, path: str, error: InputError) -> str:
        """Puts a file on the list of the bad ones; returns why."""
        reason = str(error).removeprefix(f"{path}: ")
        self._report.bad.append((path, reason))
        self._settled += 1
        return reason


def _count(report: Report, before: dict[str, File], after: dict[str, File]) -> None:
    """What happened to the files, from their contents before and after."""
    known = {file.sha256 for file in before.values()}
    left = Counter(f.sha256 for path, f in before.items() if path not in after)
    new = Counter(f.sha256 for path, f in after.items() if path not in before)
    report.changed = sum(
        file.sha256 != before[path].sha256
        for path, file in after.items()
        if path in before
    )
    for sha256, count in new.items():
        renamed = min(count, left[sha256])
        first = sha256 not in known
        report.renamed += renamed
        report.added += first
        report.duplicates += count - renamed - first
    report.removed = left.total() - report.renamed
