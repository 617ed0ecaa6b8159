"""Which files of a folder are images to index."""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from vse_jax import InputError

_IMAGES = ".jpg .jpeg .jfif .png .webp .avif .tif .tiff .gif .heic .heif"
# Not decoded: what a camera's own program makes of them is no image yet.
_RAW = (
    ".3fr .arw .bay .cap .cr2 .cr3 .crw .dcr .dng .eip .erf .fff .gpr .iiq .k25 .kdc "
    ".mef .mos .mrw .nef .nrw .orf .pef .ptx .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
)
SUFFIXES, RAW = frozenset(_IMAGES.split()), frozenset(_RAW.split())
# Left out of every folder: what is hidden, thrown away, or made from other images.
IGNORED = (
    ".*",  # .thumbnails, .Trash-1000, .@__thumb, .zfs, .picasaoriginals, …
    "@eaDir/",  # Synology: thumbnails
    "@tmp/",
    "\\#recycle/",
    "\\#snapshot/",
    "@__thumb/",  # QNAP
    "@Recycle/",
    "@Recently-Snapshot/",
    "~snapshot/",  # NetApp
    "lost+found/",
    "$RECYCLE.BIN/",  # Windows
    "$Recycle.Bin/",
    "RECYCLER/",
    "System Volume Information/",
    "Network Trash Folder/",  # macOS, on shares
    "Temporary Items/",
    "__MACOSX/",
    "*.photoslibrary/resources/",  # Apple Photos: what it makes from originals/
    "*.lrdata/",  # Lightroom's previews
    "files_trashbin/",  # Nextcloud
    "appdata_*/preview/",
    "node_modules/",
)


class Exclusions:
    """Which files and folders are left out, by patterns as in .gitignore.

    `IGNORED` comes before the patterns given, so that one of these, with "!", takes
    back what is left out otherwise: "!.stories/". The two ways in which Unicode spells
    "é" are one.

    Attributes:
        patterns: those given.
        met: those that have left something out, or taken it back.

    Raises:
        InputError: what is no pattern (names it).
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns, self.met = tuple(patterns), set[str]()
        self._lines = [*IGNORED, *self.patterns]
        compiled = []
        for line in self._lines:
            try:
                [pattern] = GitIgnoreSpec.from_lines([_composed(line)]).patterns
            except ValueError:
                raise InputError(
                    f"config.search.exclude: {line!r} is no pattern as in .gitignore"
                ) from None
            compiled.append(pattern)
        self._spec = GitIgnoreSpec(compiled)

    def match(self, path: str, is_folder: bool) -> bool:
        """Whether a file or folder is left out, if the folder it is in is not.

        `path` is relative, with slashes; some patterns are of folders only.
        """
        result = self._spec.check_file(_composed(path) + "/" * is_folder)
        if result.index is not None:
            self.met.add(self._lines[result.index])
        return bool(result.include)

    def cover(self, path: str) -> bool:
        """Whether a file is left out, alone or with a folder above it."""
        folders = above(path)[-2::-1]
        return any(self.match(it, True) for it in folders) or self.match(path, False)


def above(path: str) -> list[str]:
    """The folders that a path is in, the nearest first; the last is "."."""
    return [str(folder) for folder in PurePosixPath(path).parents]


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass
class Passed:
    """What a walk met besides image files."""

    # {path: reason} of each folder that could not be listed, and file or folder that
    # could not be looked at; relative, "." is the walked one.
    unseen: dict[str, str] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)  # paths of symbolic links
    raw: Counter[str] = field(default_factory=Counter)  # files of each suffix
    others: Counter[str] = field(default_factory=Counter)
    excluded: int = 0  # folders and image files that were left out
    # {path: which} of the walked folder, ".", and of each one below that lies on
    # another disk than the one above it.
    disks: dict[str, str] = field(default_factory=dict)

    def told(self) -> str:
        """In words: '2 symbolic links, 1 RAW file (.nef), 4 other files (.mp4, .xmp)'.

        Empty where there was nothing.
        """
        found = [f"{self.excluded:,} excluded"] if self.excluded else []
        links = Counter({"": len(self.links)})
        for kinds, name in (
            (self.others, "other file"),
            (self.raw, "RAW file"),
            (links, "symbolic link"),
        ):
            if count := kinds.total():
                some = ", ".join(suffix for suffix, _ in kinds.most_common(4) if suffix)
                words = f"{count:,} {name}{'s' * (count > 1)}"
                found.append(f"{words} ({some})" if some else words)
        return ", ".join(reversed(found))


class Seen(NamedTuple):
    """An image file, by what its folder says of it."""

    path: str  # relative, with slashes
    bytes: int
    modified: int  # nanoseconds
    identity: tuple[int, int]  # device and inode


def walk(folder: Path, exclude: Exclusions, passed: Passed) -> Iterator[Seen]:
    """The image files in and below `folder`, known by their suffixes, in order.

    What `exclude` matches is left out. Symbolic links are not followed: what they lead
    to lies in the folder, where it is found anyway, or outside, where nothing may be
    read. A folder that cannot be listed to its end gives nothing. All this is noted in
    `passed`.
    """
    waiting = [(".", -1)]  # folders to list, and the st_dev of those above
    while waiting:
        inside, above = waiting.pop()
        parent = folder / inside
        below = []
        try:
            number = parent.stat().st_dev
            with os.scandir(parent) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
            if number != above:
                passed.disks[inside] = disk_of(parent)
            if number != parent.stat().st_dev:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError as error:
            passed.unseen[inside] = error.strerror or str(error)
            continue
        for entry in entries:
            path = entry.name if inside == "." else f"{inside}/{entry.name}"
            suffix = os.path.splitext(entry.name)[1].lower()
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                is_file = entry.is_file(follow_symlinks=False)
                if exclude.match(path, is_folder):
                    passed.excluded += is_folder or suffix in SUFFIXES
                elif entry.is_symlink():
                    passed.links.add(path)
                elif is_folder:
                    below.append((path, number))
                elif is_file and suffix in SUFFIXES:
                    is_ = (folder / path).lstat()
                    identity = is_.st_dev, is_.st_ino
                    yield Seen(path, is_.st_size, is_.st_mtime_ns, identity)
                elif is_file:
                    kind = passed.raw if suffix in RAW else passed.others
                    kind[suffix or "no suffix"] += 1
            except FileNotFoundError:  # meanwhile
                continue
            except OSError as error:
                passed.unseen[path] = error.strerror or str(error)
        waiting += reversed(below)


def disk_of(folder: Path) -> str:
    """Tells the file system that a folder is on from others, after a restart, too.

    That is its own id if it has one (st_dev is a number that the kernel gives out
    again at each mount, for network and some other file systems), else the place where
    it is mounted.

    Raises:
        OSError: the folder cannot be looked at.
    """
    if id := os.statvfs(folder).f_fsid:
        return f"{id:x}"
    number, place = folder.stat().st_dev, folder
    while place.parent != place and place.parent.stat().st_dev == number:
        place = place.parent
    return os.fspath(place)


def check_folder(folder: Path) -> Path:
    """The absolute path of a folder of images; raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    return folder.resolve()
