"""Brings an index in line with a folder: only new and changed images are encoded."""

import contextlib
import hashlib
import os
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from vse_jax import (
    MAX_PIXELS,
    ImageBytes,
    InputError,
    printable,
    progress,
    usable_cores,
)
from vse_search.encoder import Encoder
from vse_search.folders import Exclusions, Passed, check_folder, walk
from vse_search.images import reading
from vse_search.store import File, NewImage, Store

_LARGEST = 2**30  # bytes of a file that is read
_KEPT = 2**28  # bytes of files that wait in memory for their decoding
_AHEAD = 16  # files that are read ahead
_LINKS = 1000  # files of known content that are linked together


@dataclass
class Report:
    """What an update did, in files.

    Attributes:
        added: new ones of new content.
        changed: known ones of other content.
        renamed: new ones of a content whose other file is gone.
        duplicates: new ones of a content that another file has.
        removed: known ones that are gone, without the renamed.
        encoded: images that went through the model.
        unseen: known ones that could not be seen or read, and stay as they are.
        bad: (path, reason) of each that is no readable image, and of each folder that
            cannot be read; paths as `files.printable` shows them.
        unmet: patterns that leave nothing out.
        passed: what is no image file.
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
    """An image file, by what its folder says of it."""

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


def check_images(folder: Path, exclude: Iterable[str] = ()) -> None:
    """Raises InputError unless there is an image in the folder, be it a bad one."""
    passed = Passed()
    if next(walk(folder, exclude, passed), None) is None:
        raise _no_images(folder, passed)


def _no_images(folder: Path, passed: Passed) -> InputError:
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
    found = _scan(folder, exclusions, passed)
    if not found:
        raise _no_images(folder, passed)
    before = store.files()
    fresh = [x for x in found.values() if x[:3] != before.get(x.path, ())[:3]]
    missing = {path: file for path, file in before.items() if path not in found}
    excluded = {path for path in missing if exclusions.cover(path)}
    disks = {} if moved or forget else store.disks
    absent = _absent(folder, missing.keys() - excluded, found.values(), passed, disks)
    hashed = _respelled(
        (seen for seen in fresh if seen.path not in before), missing.values()
    )
    images_before = {file.sha256 for file in before.values()}
    gone = absent | excluded

    def lost() -> set[str]:
        """Images that leave the index although the user did not exclude them."""
        kept = {file.sha256 for path, file in before.items() if path not in gone}
        kept.update(file.sha256 for file in hashed.values())
        return {before[path].sha256 for path in absent} - kept

    if 10 * len(lost()) > len(images_before):
        sizes = {before[path].bytes for path in absent}
        maybe = [x for x in fresh if x.bytes in sizes and x.path not in hashed]
        contents = _read_ahead(folder, maybe, lambda _: False)
        for seen, _, outcome in progress(contents, "compare", len(maybe), "pictures"):
            if not isinstance(outcome, InputError):
                hashed[seen.path] = outcome.file
        if not forget and 10 * (count := len(lost())) > len(images_before):
            raise InputError(
                f"{folder}: the index would lose {count:,} of its "
                f"{len(images_before):,} pictures, more than a tenth, for their "
                "files are gone; nothing was changed; --config.search.forget=True "
                "lets them go"
            )
    renamed = {p: file for p, file in hashed.items() if file.sha256 in images_before}
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
    steps = run.steps(fresh, batch or model.batch_size)
    for _ in progress(steps, "index", len(fresh), "pictures"):
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
    """The image files, by path; what cannot be looked at is noted in `passed`."""
    found = {}
    for path in walk(folder, exclude, passed):
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
        folder: of the images.
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


class _Content(NamedTuple):
    """A file that was read: its hash, and its bytes where they are kept."""

    file: File
    data: ImageBytes | None


def _read(folder: Path, path: str, keep: bool) -> _Content:
    """Reads a file once.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    data = None
    try:
        with (folder / path).open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > _LARGEST:
                raise InputError(f"{path}: larger than {_LARGEST / 2**30:.0f} GiB")
            if keep:
                data = ImageBytes(path, file.read(_LARGEST))
                sha256 = hashlib.sha256(data.data).hexdigest()
            else:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise _Unreadable(f"{path}: {reason}") from None
    return _Content(File(path, facts.st_size, facts.st_mtime_ns, sha256), data)


def _read_ahead(
    folder: Path, files: Iterable[_Seen], keep: Callable[[_Seen], bool]
) -> Generator[tuple[_Seen, bool, _Content | InputError]]:
    """The files in their order, some of them read ahead by threads.

    keep: whether a file's bytes stay in memory; the answer is given with the file.
    """

    def finished() -> tuple[_Seen, bool, _Content | InputError]:
        seen, is_kept, content = waiting.popleft()
        try:
            return seen, is_kept, content.result()
        except InputError as error:
            return seen, is_kept, error

    waiting: deque[tuple[_Seen, bool, Future[_Content]]] = deque()
    with ThreadPoolExecutor(usable_cores()) as readers:
        for seen in files:
            is_kept = keep(seen)
            content = readers.submit(_read, folder, seen.path, is_kept)
            waiting.append((seen, is_kept, content))
            if len(waiting) == _AHEAD:
                yield finished()
        while waiting:
            yield finished()


class _Decoded(NamedTuple):
    image: NewImage
    prepared: np.ndarray  # as `Encoder.prepare` gives it


class _Encoded(NamedTuple):
    """A batch."""

    images: list[NewImage]
    vectors: Float32[np.ndarray, "images D"]
    failed: list[tuple[File, InputError]]


class _Coming(NamedTuple):
    """A file of new content on its way to the store."""

    file: File
    held: int  # bytes of it in memory
    decoded: Future[_Decoded]


class _Run:
    """One update, while it goes on.

    Files are read ahead (`_read_ahead`) and decoded by threads, which hold few images
    at a time: see `images.reading`. A batch is encoded while the next one is decoded,
    which is encoded when this one is kept: a killed process loses one batch at most.

    Attributes:
        spoiled: paths of files whose content is no readable image.
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
        self._held = 0  # bytes of files in memory
        self._coming: set[str] = set()  # contents that are on their way to the store
        self._failed: dict[str, InputError] = {}  # contents, and why
        self._links: list[File] = []  # files of a content that is known or coming
        self._done = 0  # files that `steps` has not yet told of

    def steps(self, fresh: Sequence[_Seen], size: int) -> Iterator[None]:
        """Indexes these files in batches of `size`; yields once for each file."""
        batch: list[_Coming] = []
        encoding: tuple[list[_Coming], Future[_Encoded]] | None = None
        with contextlib.ExitStack() as stack:
            contents = _read_ahead(self._folder, fresh, self._fits)
            stack.enter_context(contextlib.closing(contents))
            decoders = ThreadPoolExecutor(usable_cores())
            encoder = ThreadPoolExecutor(1)
            for pool in (decoders, encoder):
                stack.callback(pool.shutdown, cancel_futures=True)
            for seen, is_kept, content in contents:
                held = seen.bytes if is_kept else 0
                if isinstance(content, InputError):
                    self._refuse(seen.path, content)
                    self._held -= held
                elif self._is_known(content.file.sha256):
                    self._links.append(content.file)
                    self._held -= held
                else:
                    self._coming.add(content.file.sha256)
                    decoded = decoders.submit(self._decode, content)
                    batch.append(_Coming(content.file, held, decoded))
                if len(batch) == size:
                    if encoding:
                        self._keep(*encoding)
                    encoding = batch, encoder.submit(self._encode, batch)
                    batch = []
                elif len(self._links) >= _LINKS:
                    self._link()
                yield from self._told()
            if encoding:
                self._keep(*encoding)
                yield from self._told()
            self._keep(batch, encoder.submit(self._encode, batch))
            yield from self._told()

    def _fits(self, seen: _Seen) -> bool:
        """Whether there is memory for a file's bytes, which it then has."""
        fits = self._held + seen.bytes <= _KEPT
        self._held += seen.bytes if fits else 0
        return fits

    def _is_known(self, sha256: str) -> bool:
        return sha256 in self._coming or self._store.find(sha256) is not None

    def _decode(self, content: _Content) -> _Decoded:
        file, path = content.file, self._folder / content.file.path
        try:
            with reading(content.data or path, self._max_pixels) as image:
                prepared = self._model.prepare(image.pixels)
            if content.data is None:
                now = path.lstat()
                if (now.st_size, now.st_mtime_ns) != (file.bytes, file.modified):
                    raise _Unreadable(f"{file.path}: changed while it was read")
        except InputError:
            raise
        except Exception as error:  # no file of a folder ends the update of the others
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{file.path}: not readable ({reason})") from None
        facts = image.width, image.height, image.taken, image.camera
        return _Decoded(NewImage(file, *facts), prepared)

    def _encode(self, batch: list[_Coming]) -> _Encoded:
        decoded: list[_Decoded] = []
        failed: list[tuple[File, InputError]] = []
        for coming in batch:
            try:
                decoded.append(coming.decoded.result())
            except InputError as error:
                failed.append((coming.file, error))
        images = [image for image, _ in decoded]
        vectors = np.zeros((0, self._model.dim), np.float32)
        if images:
            vectors = self._model.encode_images([prepared for _, prepared in decoded])
        return _Encoded(images, vectors, failed)

    def _keep(self, batch: list[_Coming], encoding: Future[_Encoded]) -> None:
        """Adds a batch to the store, as soon as it is encoded."""
        images, vectors, failed = encoding.result()
        if images:
            self._store.add(images, vectors)
        self._report.encoded += len(images)
        self._done += len(images)
        for coming in batch:
            self._coming.remove(coming.file.sha256)
            self._held -= coming.held
        for file, error in failed:
            self._failed[file.sha256] = self._refuse(file.path, error)
        self._link()

    def _link(self) -> None:
        """Links the files whose content the store has by now."""
        ready = [file for file in self._links if file.sha256 not in self._coming]
        self._links = [file for file in self._links if file.sha256 in self._coming]
        good = [file for file in ready if file.sha256 not in self._failed]
        for file in ready:
            if error := self._failed.get(file.sha256):
                self._refuse(file.path, error)
        if good:
            self._store.link(good)
        self._done += len(good)

    def _told(self) -> Iterator[None]:
        """Yields once for each file that is done."""
        for _ in range(self._done):
            yield
        self._done = 0

    def _refuse(self, path: str, error: InputError) -> InputError:
        """Puts a file on the list of the bad ones; returns why, without its name."""
        reason = str(error)
        for name in (path, self._folder / path):
            reason = reason.removeprefix(f"{name}: ")
        self._report.bad.append((printable(path), reason))
        unread = isinstance(error, _Unreadable)
        (self.unread if unread else self.spoiled).add(path)
        self._done += 1
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
