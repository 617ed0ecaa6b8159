"""Brings an index in line with a folder: only new and changed pictures are encoded."""

import collections
import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import numpy as np

from vse_jax import ImageBytes, InputError, printable, progress
from vse_search import pictures
from vse_search.encoder import Encoder
from vse_search.pictures import Exclusions, Passed
from vse_search.store import File, NewPicture, Store

_LARGEST = 2**30  # bytes of a file that is read
_KEPT = 2**28  # bytes of files that wait in memory for their decoding
_AHEAD = 16  # files that are read ahead
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
        unseen: known ones that could not be seen or read, and stay as they are.
        bad: (path, reason) of each that is no readable picture, and of each folder that
            cannot be read; paths as `files.printable` shows them.
        unmet: patterns that leave nothing out.
        passed: what is no picture file.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    duplicates: int = 0
    removed: int = 0
    encoded: int = 0
    unseen: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed, compare=False)


class _Seen(NamedTuple):
    """A picture file, by what its folder says of it."""

    path: str  # relative, with slashes
    bytes: int
    modified: int  # nanoseconds
    identity: tuple[int, int]  # device and inode


class _Unreadable(InputError):
    """A file cannot be read now, which says nothing of its content."""


def check_model(store: Store, model: Encoder) -> None:
    """Raises InputError unless `model` made the vectors of `store`."""
    if store.model != model.fingerprint:
        raise InputError(
            f"{store.index}: index of another model ({store.model_name!r}, not "
            f"{model.name!r} as it is now): its weights, vocabulary or settings "
            "differ; name another --config.search.index"
        )


def check_pictures(folder: Path, exclude: Iterable[str] = ()) -> None:
    """Raises InputError unless there is a picture in the folder, be it a bad one."""
    passed = Passed()
    if next(pictures.walk(folder, exclude, passed), None) is None:
        raise _no_pictures(folder, passed)


def _no_pictures(folder: Path, passed: Passed) -> InputError:
    why = [f"{path}: {reason}" for path, reason in passed.unseen.items()][:1]
    if told := passed.told():
        why.append(f"passed over: {told}")
    line = f"{folder}: no pictures in this folder"
    return InputError(f"{line} ({'; '.join(why)})" if why else line)


def update(
    store: Store,
    model: Encoder,
    *,
    folder: Path | None = None,
    exclude: Iterable[str] | None = None,
    forget: bool = False,
    max_pixels: int = pictures.MAX_PIXELS,
    batch: int = 32,
) -> Report:
    """Makes the index tell what the folder of its pictures holds now.

    A file of the size and time that the index knows is taken for unchanged. Of the
    others the hash of the content decides: what is known is noted, what is new is
    encoded and kept in batches of `batch` pictures, each decoded while the one before
    is encoded. What is gone leaves the index at the end, so that a renamed file is
    known by its content. What cannot be seen is not gone: see `_absent`.

    Args:
        store: the index.
        model: made its vectors.
        folder: where the pictures lie now. None: where they did.
        exclude: patterns of what is left out, see `pictures.Exclusions`. The index
            remembers them. None: those that it remembers.
        forget: more than a tenth of the pictures may leave the index, and those of a
            disk that is not there any more.
        max_pixels: of a picture; a larger one is bad.
        batch: pictures that are encoded together.

    Raises:
        InputError: no such folder, no picture in it, an index of another model, a wrong
            pattern, or more pictures are gone than may. Nothing was changed.
    """
    check_model(store, model)
    folder = pictures.check_folder(folder or store.folder)
    moved = folder != store.folder
    exclusions = Exclusions(store.exclude if exclude is None else exclude)
    report = Report()
    passed = report.passed
    found = _scan(folder, exclusions, passed)
    if not found:
        raise _no_pictures(folder, passed)
    before = store.files()
    fresh = [x for x in found.values() if x[:3] != before.get(x.path, ())[:3]]
    missing = {path: file for path, file in before.items() if path not in found}
    excluded = {path for path in missing if exclusions.cover(path)}
    disks = {} if moved or forget else store.disks
    absent = _absent(folder, missing.keys() - excluded, found.values(), passed, disks)
    hashed = _respelled(
        (seen for seen in fresh if seen.path not in before), missing.values()
    )
    pictures_before = {file.sha256 for file in before.values()}
    gone = absent | excluded

    def lost() -> set[str]:
        """Pictures that leave the index although the user did not exclude them."""
        kept = {file.sha256 for path, file in before.items() if path not in gone}
        kept.update(file.sha256 for file in hashed.values())
        return {before[path].sha256 for path in absent} - kept

    if 10 * len(lost()) > len(pictures_before):
        sizes = {before[path].bytes for path in absent}
        maybe = [x for x in fresh if x.bytes in sizes and x.path not in hashed]
        reading = _read_ahead(folder, maybe, _Room(0))
        for seen, outcome in progress(reading, "compare", len(maybe), "pictures"):
            if not isinstance(outcome, InputError):
                hashed[seen.path] = outcome[0]
        if not forget and 10 * (count := len(lost())) > len(pictures_before):
            raise InputError(
                f"{folder}: the index would lose {count:,} of its "
                f"{len(pictures_before):,} pictures, more than a tenth, for their "
                "files are gone; nothing was changed; --config.search.forget=True "
                "lets them go"
            )
    renamed = {p: file for p, file in hashed.items() if file.sha256 in pictures_before}
    unseen = passed.unseen.keys()
    away = {p: disk for p, disk in store.disks.items() if unseen & {p, *_above(p)}}
    if moved:
        store.move(folder)
    store.remember(exclusions.patterns, passed.disks | away)
    report.bad = [(printable(path), why) for path, why in passed.unseen.items()]
    if renamed:
        store.link(renamed.values())
    run = _Run(store, model, folder, max_pixels, report)
    fresh = [seen for seen in fresh if seen.path not in renamed]
    for _ in progress(run.steps(fresh, batch), "index", len(fresh), "pictures"):
        pass
    gone |= run.spoiled & before.keys()
    if gone or fresh or renamed:
        store.forget(gone)
        store.compact()
        _count(report, before, store.files())
    report.unseen = len(missing.keys() - gone) + len(run.unread & before.keys())
    report.unmet = [p for p in exclusions.patterns if p not in exclusions.met]
    return report


def _scan(folder: Path, exclude: Exclusions, passed: Passed) -> dict[str, _Seen]:
    """The picture files, by path; what cannot be looked at is noted in `passed`."""
    found = {}
    for path in pictures.walk(folder, exclude, passed):
        relative = path.relative_to(folder).as_posix()
        try:
            facts = path.lstat()
        except FileNotFoundError:  # meanwhile
            continue
        except OSError as error:
            passed.unseen[relative] = error.strerror or str(error)
            continue
        identity = (facts.st_dev, facts.st_ino)
        found[relative] = _Seen(relative, facts.st_size, facts.st_mtime_ns, identity)
    return found


def _absent(
    folder: Path,
    missing: Iterable[str],
    found: Iterable[_Seen],
    passed: Passed,
    disks: dict[str, str],
) -> set[str]:
    """Which files of the index are seen to be gone.

    Those that are not in a folder that was listed to its end, on the disk on which it
    was before: a share that is not mounted leaves an empty folder, which is on the disk
    of the folder above it. The system must say, too, that they are not there. Why
    others stay is noted in `passed.unseen`.

    Args:
        folder: of the pictures.
        missing: paths in the index that the walk did not find.
        found: what it did.
        passed: what else it met.
        disks: as the last update remembered them.
    """
    gone = set()
    identities = {seen.identity for seen in found}
    unlisted = set(passed.unseen)
    for path in sorted(missing):
        above = _above(path)
        if passed.links & {path, *above}:  # links are not followed
            gone.add(path)
            continue
        if unlisted & {path, *above}:
            continue
        was = next((parent for parent in above if parent in disks), None)
        now = next(parent for parent in above if parent in passed.disks)
        if was is not None and disks[was] != passed.disks[now]:
            passed.unseen[was] = (
                "is not on the disk that it was on, so its pictures stay; "
                "--config.search.forget=True lets them go"
            )
            continue
        try:
            facts = (folder / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            gone.add(path)
        except OSError as error:
            passed.unseen[path] = error.strerror or str(error)
        else:
            # Under its old name a file may still be found: some systems take no account
            # of capitals, or of how "é" is spelled.
            known = (facts.st_dev, facts.st_ino) in identities
            if known or not stat.S_ISREG(facts.st_mode):
                gone.add(path)
            else:
                passed.unseen[path] = "is there, but its folder does not list it"
    return gone


def _above(path: str) -> list[str]:
    """The folders that a path is in, the nearest first; the last is "."."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)] + ["."]


def _respelled(new: Iterable[_Seen], missing: Iterable[File]) -> dict[str, File]:
    """New files that are missing ones, whose names Unicode spells in another way.

    A share may give "é" to one system as one character, and to another as two.
    """

    def facts(file: _Seen | File) -> tuple[str, int, int]:
        return unicodedata.normalize("NFC", file.path), file.bytes, file.modified

    known = {facts(file): file for file in missing}
    same = ((seen.path, known.get(facts(seen))) for seen in new)
    return {path: file._replace(path=path) for path, file in same if file}


class _Room:
    """Memory for files, in bytes. Threads may share it."""

    def __init__(self, bytes: int) -> None:
        self._free, self._guard = bytes, Lock()

    def take(self, bytes: int) -> bool:
        """Whether there was so much, which is taken then."""
        with self._guard:
            there = bytes <= self._free
            self._free -= bytes if there else 0
        return there

    def give(self, bytes: int) -> None:
        with self._guard:
            self._free += bytes


class _Content(NamedTuple):
    """A file that was read: its hash, and its bytes where there was room for them."""

    file: File
    bytes: ImageBytes | None


def _read(folder: Path, path: str, room: _Room) -> _Content:
    """Reads a file once.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    content = None
    try:
        with (folder / path).open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > _LARGEST:
                raise InputError(f"{path}: larger than {_LARGEST / 2**30:.0f} GiB")
            if room.take(facts.st_size):
                content = ImageBytes(path, file.read(_LARGEST))
                sha256 = hashlib.sha256(content.data).hexdigest()
            else:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise _Unreadable(f"{path}: {reason}") from None
    return _Content(File(path, facts.st_size, facts.st_mtime_ns, sha256), content)


def _read_ahead(
    folder: Path, files: Iterable[_Seen], room: _Room
) -> Iterator[tuple[_Seen, _Content | InputError]]:
    """The files in their order, some of them read ahead by threads."""

    def read(path: str) -> _Content | InputError:
        try:
            return _read(folder, path, room)
        except InputError as error:
            return error

    waiting: collections.deque[tuple[_Seen, Future[_Content | InputError]]]
    waiting = collections.deque()
    with ThreadPoolExecutor(os.cpu_count()) as readers:
        for seen in files:
            waiting.append((seen, readers.submit(read, seen.path)))
            if len(waiting) == _AHEAD:
                first, reading = waiting.popleft()
                yield first, reading.result()
        for first, reading in waiting:
            yield first, reading.result()


class _Batch(Sequence[np.ndarray]):
    """Pictures as the model takes them, each decoded when the model asks for it.

    It is in memory only until it has the model's size. All but the last
    may be had before the batch `before` is kept: what is lost with a killed process is
    never more than one batch.

    Attributes:
        held: bytes of files that it has in memory.
    """

    def __init__(
        self,
        model: Encoder,
        folder: Path,
        contents: list[_Content],
        max_pixels: int,
        before: Event,
    ) -> None:
        self.files, self.kept = [content.file for content in contents], Event()
        self.outcomes: list[NewPicture | InputError | None] = [None] * len(contents)
        self._model = model
        self._folder, self._max_pixels, self._before = folder, max_pixels, before
        self.held = sum(x.file.bytes for x in contents if x.bytes is not None)
        self._bytes = [content.bytes for content in contents]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at):
        if at == len(self) - 1:
            self._before.wait()
        file, content = self.files[at], self._bytes[at]
        path = self._folder / file.path
        try:
            with pictures.reading(content or path, self._max_pixels) as picture:
                prepared = self._model.prepare(picture.pixels)
            if content is None:
                now = path.lstat()
                if (now.st_size, now.st_mtime_ns) != file[1:3]:
                    raise _Unreadable(f"{file.path}: changed while it was read")
        except InputError as error:
            self.outcomes[at] = error
            return _NOTHING
        except Exception as error:  # no file of a folder ends the update of the others
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.outcomes[at] = InputError(f"{file.path}: not readable ({reason})")
            return _NOTHING
        facts = picture.width, picture.height, picture.taken, picture.camera
        self.outcomes[at] = NewPicture(file, *facts)
        return prepared


class _Run:
    """One update, while it goes on.

    Attributes:
        spoiled: paths of files whose content is no readable picture.
        unread: of those whose content could not be read.
    """

    def __init__(
        self,
        store: Store,
        model: Encoder,
        folder: Path,
        max_pixels: int,
        report: Report,
    ) -> None:
        self.spoiled: set[str] = set()
        self.unread: set[str] = set()
        self._store, self._model, self._folder = store, model, folder
        self._max_pixels, self._report = max_pixels, report
        self._room = _Room(_KEPT)
        self._coming: set[str] = set()  # contents that are on their way to the store
        self._failed: dict[str, InputError] = {}  # contents, and why
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
                for contents in self._batches(fresh, size):
                    if contents:
                        batch = _Batch(
                            self._model, self._folder, contents, self._max_pixels, last
                        )
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

    def _batches(self, fresh: Sequence[_Seen], size: int) -> Iterator[list[_Content]]:
        """The files of new content, in batches; the others are linked or refused."""
        batch: list[_Content] = []
        for seen, content in _read_ahead(self._folder, fresh, self._room):
            if isinstance(content, InputError):
                self._refuse(seen.path, content)
                continue
            sha256 = content.file.sha256
            if sha256 in self._coming or self._store.find(sha256):
                self._links.append(content.file)
                if content.bytes is not None:
                    self._room.give(content.file.bytes)
            else:
                self._coming.add(sha256)
                batch.append(content)
            if len(batch) == size:
                yield batch
                batch = []
            elif len(self._links) >= _LINKS:
                yield []
        yield batch

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
            self._room.give(batch.held)
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
            if error := self._failed.get(file.sha256):
                self._refuse(file.path, error)
        if good:
            self._store.link(good)
        for _ in range(self._settled + len(good)):
            yield
        self._settled = 0

    def _refuse(self, path: str, error: InputError) -> InputError:
        """Puts a file on the list of the bad ones; returns why, without its name."""
        reason = str(error)
        for name in (path, self._folder / path):
            reason = reason.removeprefix(f"{name}: ")
        self._report.bad.append((printable(path), reason))
        unread = isinstance(error, _Unreadable)
        (self.unread if unread else self.spoiled).add(path)
        self._settled += 1
        return type(error)(reason)


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
