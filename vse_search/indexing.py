"""Brings an index in line with a folder: only new and changed images are encoded."""

import contextlib
import hashlib
import os
import stat
import threading
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from vse_jax import (
    MAX_PIXELS,
    ImageBytes,
    InputError,
    printable,
    progress,
    usable_cores,
)
from vse_search.encoder import Encoder
from vse_search.folders import Exclusions, Passed, Seen, above, check_folder, walk
from vse_search.images import Memory, reading
from vse_search.store import File, NewImage, Store

T = TypeVar("T")
U = TypeVar("U")

_LARGEST = 2**30  # bytes of a file that is read
_KEPT = 2**28  # bytes of files that wait in memory for their decoding
_AHEAD = 16  # files that are read ahead, at least
_LINKS = 1000  # files of known content that are linked together


@dataclass
class Report:
    """What an update did, in files."""

    added: int = 0  # new ones of new content
    changed: int = 0  # known ones of other content
    renamed: int = 0  # new ones of a content whose other file is gone
    duplicates: int = 0  # new ones of a content that another file has
    removed: int = 0  # known ones that are gone, without the renamed
    encoded: int = 0  # images that went through the model
    unseen: int = 0  # known ones that could not be seen or read, and stay as they are
    # (path, reason) of each that is no readable image, and of each folder that cannot
    # be read; paths are `printable`.
    bad: list[tuple[str, str]] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)  # patterns that leave nothing out
    passed: Passed = field(default_factory=Passed, compare=False)


class _Unreadable(InputError):
    """A file cannot be read now, which says nothing of its content."""


def check_model(store: Store, model: Encoder) -> None:
    """Raises InputError unless `model` made the vectors of `store`."""
    made, made_by = _by(store.model)
    now, by = _by(model.fingerprint)
    if made == now and made_by != by:
        backend, _, precision = made_by.partition(" ")
        flags = [f"--config.search.backend={backend}"]
        flags += [f"--config.search.precision={precision}"] if precision else []
        raise InputError(
            f"{store.index}: {made_by} computed its vectors, and this is {by}; add "
            f"{' '.join(flags)} or name another --config.search.index"
        )
    if made != now:
        raise InputError(
            f"{store.index}: index of another model ({store.model_name!r}, not "
            f"{model.name!r} as it is now): its weights, vocabulary or settings "
            "differ; name another --config.search.index"
        )


def _by(fingerprint: str) -> tuple[str, str]:
    """A model's fingerprint, and the backend and precision that it tells of."""
    digest, _, backend = fingerprint.partition(" by ")
    return digest, backend or "jax"


def check_images(folder: Path, exclude: Iterable[str] = ()) -> None:
    """Raises InputError unless there is an image, even a bad one, in the folder."""
    passed = Passed()
    if next(walk(folder, Exclusions(exclude), passed), None) is None:
        raise _no_images(folder, passed)


def _no_images(folder: Path, passed: Passed) -> InputError:
    why = [f"{path}: {reason}" for path, reason in passed.unseen.items()][:1]
    if told := passed.told():
        why.append(f"passed over: {told}")
    line = f"{folder}: no images in this folder"
    return InputError(f"{line} ({'; '.join(why)})" if why else line)


def update(
    store: Store,
    model: Encoder,
    *,
    folder: Path | None = None,
    exclude: Iterable[str] | None = None,
    forget: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch: int | None = None,
) -> Report:
    """Makes the index tell what the folder of its images holds now.

    A file of the size and time that the index knows is taken for unchanged. Of the
    others the hash of the content decides: what is known is noted, what is new is
    encoded and kept in batches of `batch` images, each decoded while the one before
    is encoded. What is gone leaves the index at the end, so that a renamed file is
    known by its content. What cannot be seen is not gone: see `_absent`.

    Args:
        store: the index.
        model: made its vectors.
        folder: where the images lie now. None: where they did.
        exclude: patterns of what is left out, see `folders.Exclusions`. The index
            remembers them. None: those that it remembers.
        forget: more than a tenth of the images may leave the index, and those of a
            disk that is not there any more.
        max_pixels: of an image; a larger one is bad.
        batch: images that are encoded together; None: as many as the model takes.

    Raises:
        InputError: no such folder, no image in it, an index of another model, a wrong
            pattern, or more images are gone than may. Nothing was changed.
    """
    check_model(store, model)
    folder = check_folder(folder or store.folder)
    moved = folder != store.folder
    exclusions = Exclusions(store.exclude if exclude is None else exclude)
    report = Report()
    passed = report.passed
    found = {seen.path: seen for seen in walk(folder, exclusions, passed)}
    if not found:
        raise _no_images(folder, passed)
    before = store.files()
    fresh = [x for x in found.values() if x[:3] != before.get(x.path, ())[:3]]
    missing = {path: file for path, file in before.items() if path not in found}
    excluded = {path for path in missing if exclusions.cover(path)}
    disks = {} if moved or forget else store.disks
    absent = _absent(folder, missing.keys() - excluded, found.values(), passed, disks)
    new = [seen for seen in fresh if seen.path not in before]
    hashed = _respelled(new, missing.values())
    images_before = {file.sha256 for file in before.values()}
    gone = absent | excluded

    def lost() -> set[str]:
        """Images that leave the index although the user did not exclude them."""
        kept = {file.sha256 for path, file in before.items() if path not in gone}
        kept.update(file.sha256 for file in hashed.values())
        return {before[path].sha256 for path in absent} - kept

    def content(seen: Seen) -> File | None:
        with contextlib.suppress(InputError):
            return _hashed(folder, seen.path, keep=False)[0]
        return None

    if 10 * len(lost()) > len(images_before):
        sizes = {before[path].bytes for path in absent}
        maybe = [x for x in fresh if x.bytes in sizes and x.path not in hashed]
        with ThreadPoolExecutor(usable_cores()) as readers:
            contents = _ahead(readers, content, maybe, _AHEAD)
            for file in progress(contents, "compare", len(maybe), "images"):
                if file is not None:
                    hashed[file.path] = file
        if not forget and 10 * (count := len(lost())) > len(images_before):
            raise InputError(
                f"{folder}: the index would lose {count:,} of its "
                f"{len(images_before):,} images, more than a tenth, for their "
                "files are gone; nothing was changed; --config.search.forget=True "
                "lets them go"
            )
    renamed = {p: file for p, file in hashed.items() if file.sha256 in images_before}
    unseen = passed.unseen.keys()
    away = {p: disk for p, disk in store.disks.items() if unseen & {p, *above(p)}}
    if moved:
        store.move(folder)
    store.remember(exclusions.patterns, passed.disks | away)
    report.bad = [(printable(path), why) for path, why in passed.unseen.items()]
    if renamed:
        store.link(renamed.values())
    run = _Run(store, model, folder, max_pixels, report)
    fresh = [seen for seen in fresh if seen.path not in renamed]
    steps = run.steps(fresh, batch or model.batch_size)
    for _ in progress(steps, "index", len(fresh), "images"):
        pass
    gone |= run.spoiled & before.keys()
    if gone or fresh or renamed:
        store.forget(gone)
        store.compact()
        _count(report, before, store.files())
    report.unseen = len(missing.keys() - gone) + len(run.unread & before.keys())
    report.unmet = [p for p in exclusions.patterns if p not in exclusions.met]
    return report


def _absent(
    folder: Path,
    missing: Iterable[str],
    found: Iterable[Seen],
    passed: Passed,
    disks: dict[str, str],
) -> set[str]:
    """Which files of the index are seen to be gone.

    Those that are not in a folder that was listed to its end, on the disk on which it
    was before: a share that is not mounted leaves an empty folder, which is on the disk
    of the folder above it. The system must say, too, that they are not there. Why
    others stay is noted in `passed.unseen`.
    """
    gone = set()
    identities = {seen.identity for seen in found}
    unlisted = set(passed.unseen)
    for path in sorted(missing):
        folders = above(path)
        if passed.links & {path, *folders}:  # links are not followed
            gone.add(path)
            continue
        if unlisted & {path, *folders}:
            continue
        was = next((parent for parent in folders if parent in disks), None)
        now = next(parent for parent in folders if parent in passed.disks)
        if was is not None and disks[was] != passed.disks[now]:
            passed.unseen[was] = (
                "is not on the disk that it was on, so its images stay; "
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


def _respelled(new: Iterable[Seen], missing: Iterable[File]) -> dict[str, File]:
    """New files that are missing ones, whose names Unicode spells in another way.

    A share may give "é" to one system as one character, and to another as two.
    """

    def facts(file: Seen | File) -> tuple[str, int, int]:
        return unicodedata.normalize("NFC", file.path), file.bytes, file.modified

    known = {facts(file): file for file in missing}
    same = ((seen.path, known.get(facts(seen))) for seen in new)
    return {path: file._replace(path=path) for path, file in same if file}


def _hashed(folder: Path, path: str, keep: bool) -> tuple[File, ImageBytes | None]:
    """A file, which is read once, and its content if `keep`.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    data = None
    try:
        with (folder / path).open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > _LARGEST:
                raise InputError(f"larger than {_LARGEST / 2**30:.0f} GiB")
            if keep:
                data = ImageBytes(path, file.read(_LARGEST))
                sha256 = hashlib.sha256(data.data).hexdigest()
            else:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise _Unreadable(reason) from None
    return File(path, facts.st_size, facts.st_mtime_ns, sha256), data


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], count: int
) -> Iterator[U]:
    """What `function` gives of each item, in order; `count` more are begun ahead."""
    begun: deque[Future[U]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) > count:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class _Read(NamedTuple):
    """A file that was read.

    Without an image and an error, its content is in the store or on its way there.
    """

    path: str
    file: File | None = None
    image: NewImage | None = None
    prepared: np.ndarray | None = None  # as `Encoder.prepare` gives it
    error: InputError | None = None


def _batches(files: Iterable[_Read], size: int) -> Iterator[list[_Read]]:
    """Files with at most `size` images among them, and `_LINKS` others."""
    batch: list[_Read] = []
    images = 0
    for file in files:
        batch.append(file)
        images += file.image is not None
        if images == size or len(batch) - images == _LINKS:
            yield batch
            batch, images = [], 0
    yield batch


@dataclass
class _Run:
    """One update, while it goes on.

    Files are read ahead and decoded by threads, which hold little at a time: see
    `images.Memory`. While a batch is encoded and kept, the next one is decoded. A
    killed process loses one batch at most.

    Attributes:
        spoiled: paths of files whose content is no readable image.
        unread: of those whose content could not be read.
    """

    store: Store
    model: Encoder
    folder: Path
    max_pixels: int
    report: Report
    spoiled: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files = Memory()
        self._guard = threading.Lock()
        self._coming: set[str] = set()  # contents that are on their way to the store
        self._failed: dict[str, InputError] = {}  # contents, and why
        self._links: list[_Read] = []  # of contents that are on their way

    def steps(self, fresh: Iterable[Seen], size: int) -> Iterator[str]:
        """Indexes these files in batches of `size`; yields each path afterwards."""
        readers = ThreadPoolExecutor(usable_cores() + 1)  # one waits for a file
        try:
            files = _ahead(readers, self._read, fresh, max(_AHEAD, size))
            for paths in map(self._keep, _batches(files, size)):
                yield from paths
        finally:
            readers.shutdown(cancel_futures=True)

    def _read(self, seen: Seen) -> _Read:
        """Decodes a file, unless its content is known."""
        path, fits = seen.path, seen.bytes <= _KEPT
        with self._files.taken(fits * seen.bytes, _KEPT):
            try:
                file, data = _hashed(self.folder, path, keep=fits)
            except InputError as error:
                return _Read(path, error=error)
            with self._guard:
                is_known = self.store.find(file.sha256) is not None
                if is_known or file.sha256 in self._coming:
                    return _Read(path, file)
                self._coming.add(file.sha256)
            try:
                return _Read(path, file, *self._decoded(file, data))
            except InputError as error:
                with self._guard:
                    self._failed[file.sha256] = error
                    self._coming.remove(file.sha256)
                return _Read(path, file, error=error)

    def _decoded(
        self, file: File, data: ImageBytes | None
    ) -> tuple[NewImage, np.ndarray]:
        path = self.folder / file.path
        try:
            with reading(data or path, self.max_pixels) as image:
                prepared = self.model.prepare(image.pixels)
            if data is None:
                now = path.lstat()
                if (now.st_size, now.st_mtime_ns) != (file.bytes, file.modified):
                    raise _Unreadable("changed while it was read")
        except InputError as error:
            name = data.name if data else path
            raise type(error)(str(error).removeprefix(f"{name}: ")) from None
        except Exception as error:  # no file of a folder ends the update of the others
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"not readable ({reason})") from None
        facts = image.width, image.height, image.taken, image.camera
        return NewImage(file, *facts), prepared

    def _keep(self, batch: list[_Read]) -> list[str]:
        """Encodes a batch and adds it to the store; links files of known content."""
        images = [read.image for read in batch if read.image]
        if images:
            prepared = [x.prepared for x in batch if x.prepared is not None]
            self.store.add(images, self.model.encode_images(prepared))
            self.report.encoded += len(images)
        links, self._links = self._links + [x for x in batch if not x.image], []
        known = []
        with self._guard:
            self._coming.difference_update(image.file.sha256 for image in images)
            for read in links:
                sha256 = read.file.sha256 if read.file else ""
                if sha256 in self._coming:
                    self._links.append(read)
                elif error := read.error or self._failed.get(sha256):
                    self.report.bad.append((printable(read.path), str(error)))
                    unread = isinstance(error, _Unreadable)
                    (self.unread if unread else self.spoiled).add(read.path)
                elif read.file:
                    known.append(read.file)
        if known:
            self.store.link(known)
        return [read.path for read in batch]


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
