"""What a picture file is: which files are looked at, and what is read from them."""

import contextlib
import datetime
import errno
import io
import os
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pathspec import GitIgnoreSpec
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from vse_jax import MAX_PIXELS, ImageBytes, InputError, opened, orientation, to_rgb

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif"),
        *(".tif", ".tiff", ".gif", ".heic", ".heif"),
    )
)
# No other decoder sees a file, whatever its name: Pillow's EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF")
# Not decoded: what a camera's own program makes of them is no picture yet.
RAW = frozenset(
    (
        *(".3fr", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dng"),
        *(".eip", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos"),
        *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf", ".raw", ".rw2"),
        *(".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    )
)
# Left out of every folder: what is hidden, thrown away, or made from other pictures.
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
_WHOLE = 50_000_000  # pixels of a picture that is decoded in its own size
_SIDE = 1024  # px, the shorter side of one that is decoded smaller
_AROUND = 2**25  # bytes that any picture takes: bands, and what a model makes of it
_ORIGINAL, _DIGITISED, _CHANGED = 0x9003, 0x9004, 0x0132  # EXIF's dates
_MAKE, _MODEL, _EXIF_IFD = 0x010F, 0x0110, 0x8769
# EXIF has '2019:05:01 12:30:00'. Programs write what ISO 8601 has, too, leave the end
# away, or blanks for what they do not know; fractions and time zones may follow.
_DATE = re.compile(
    r"[\s\0]*(\d{4})[-:/. ]?(\d{1,2})[-:/. ]?(\d{1,2})(?!\d)"
    r"(?:[T\s]*(\d{1,2})(?:[:.]?(\d{1,2})(?:[:.]?(\d{1,2}))?)?)?",
    re.ASCII,
)
_FIRST_PHOTOGRAPH = 1826  # a year before it is a placeholder
_XMP_DATE = re.compile(
    r"(?:exif:DateTimeOriginal|photoshop:DateCreated|xmp:CreateDate)(?:=\"|>)([^\"<]*)"
)


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what its file says of it.

    Attributes:
        pixels: RGB, upright; of a large picture, fewer than it has (`reading`).
        width, height: of the whole picture, upright.
        taken: local time of the camera, 'YYYY-MM-DDTHH:MM:SS'.
        camera: maker and model.
    """

    pixels: UInt8[np.ndarray, "rows columns 3"]
    width: int
    height: int
    taken: str | None
    camera: str | None


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
                wrong = (
                    f"config.search.exclude: {line!r} is no pattern as in .gitignore"
                )
                raise InputError(wrong) from None
            compiled.append(pattern)
        self._spec = GitIgnoreSpec(compiled)

    def match(self, path: str, is_folder: bool) -> bool:
        """Whether a file or folder is left out, where the folder it is in is not.

        Args:
            path: relative, with slashes.
            is_folder: some patterns are of folders only.
        """
        result = self._spec.check_file(_composed(path) + "/" * is_folder)
        if result.index is not None:
            self.met.add(self._lines[result.index])
        return bool(result.include)

    def cover(self, path: str) -> bool:
        """Whether a file is left out, be it with a folder above it."""
        parts = path.split("/")
        above = ("/".join(parts[:end]) for end in range(1, len(parts)))
        return any(self.match(it, True) for it in above) or self.match(path, False)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass
class Passed:
    """What a walk met besides picture files.

    Attributes:
        unseen: {path: reason} of each folder that could not be listed, and file or
            folder that could not be looked at; relative, "." is the walked one.
        links: paths of symbolic links.
        raw, others: how many files of each suffix.
        excluded: folders and picture files that were left out.
        disks: {path: which} of the walked folder, ".", and of each one below that lies
            on another disk than the one above it.
    """

    unseen: dict[str, str] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    raw: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    excluded: int = 0
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


def walk(
    folder: Path,
    exclude: Exclusions | Iterable[str] = (),
    passed: Passed | None = None,
) -> Iterator[Path]:
    """The picture files in and below `folder`, known by their suffixes, in order.

    What `exclude` matches is left out. Symbolic links are not followed: what they lead
    to lies in the folder, where it is found anyway, or outside, where nothing may be
    read. A folder that cannot be listed to its end gives nothing. All this is noted in
    `passed`.
    """
    passed = Passed() if passed is None else passed
    if not isinstance(exclude, Exclusions):
        exclude = Exclusions(exclude)
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
            try:
                is_link = entry.is_symlink()
                is_folder = entry.is_dir(follow_symlinks=False)
                is_file = entry.is_file(follow_symlinks=False)
            except OSError as error:  # where a listing does not tell
                passed.unseen[path] = error.strerror or str(error)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if exclude.match(path, is_folder):
                passed.excluded += is_folder or suffix in SUFFIXES
            elif is_link:
                passed.links.add(path)
            elif is_folder:
                below.append((path, number))
            elif is_file and suffix in SUFFIXES:
                yield folder / path
            elif is_file:
                kind = passed.raw if suffix in RAW else passed.others
                kind[suffix or "no suffix"] += 1
        waiting += reversed(below)


def disk_of(folder: Path) -> str:
    """Tells the file system that a folder is on from others, after a restart, too.

    That is its own id where it has one (st_dev is a number that the kernel gives out
    anew at each mount, for network and some other file systems), else the place where
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


def read_picture(picture: Path | ImageBytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """As `reading`; what is decoded is nobody's to count from then on."""
    with reading(picture, max_pixels) as found:
        return found


@contextlib.contextmanager
def reading(
    picture: Path | ImageBytes, max_pixels: int = MAX_PIXELS
) -> Iterator[Picture]:
    """Decodes a JPEG, PNG, WebP, AVIF, TIFF, GIF (first frame) or HEIC picture.

    Its pixels are those of data.images.load_image, unless it has more than 50 million,
    or too many for the memory. Then 2 × 2, 4 × 4 or 8 × 8 of them become one: as many
    as leave the shorter side 1,024 px, which is at least twice what a model takes.

    All blocks together, with what decoding takes, have `memory_for(max_pixels)`. One
    waits until there is room.

    Raises:
        InputError: no whole, readable picture, or one of more than `max_pixels` or that
            needs more memory, which is then not decoded (names the file).
    """
    limit = memory_for(max_pixels)
    with contextlib.ExitStack() as stack:
        with opened(picture, max_pixels, FORMATS) as image:
            factor = 1
            width, height = image.size
            if width * height > _WHOLE or _bytes_to_decode(image, 1) > limit:
                while factor < 8 and min(width, height) >= 2 * factor * _SIDE:
                    factor *= 2
            bytes = _bytes_to_decode(image, factor)
            if bytes > limit:
                name = picture.name if isinstance(picture, ImageBytes) else picture
                raise InputError(
                    f"{name}: to decode {width:,} × {height:,} pixels of this kind "
                    f"takes {bytes / 1e9:.1f} GB; config.search.max_pixels = "
                    f"{max_pixels:,} allows {limit / 1e9:.1f} GB"
                )
            stack.enter_context(_memory.taken(bytes, limit))
            if isinstance(image, JpegImagePlugin.JpegImageFile) and factor > 1:
                image.draft(None, (width // factor, height // factor))
                factor = 1
            pixels = to_rgb(image, factor)
            if orientation(image) >= 5:
                width, height = height, width
            found = Picture(pixels, width, height, *_notes(image))
        del image, pixels
        yield found


def memory_for(max_pixels: int) -> int:
    """Bytes that pictures may take together while they are decoded: 5 a pixel of
    config.search.max_pixels, and 256 MB at least."""
    return max(5 * max_pixels, 2**28)


def _bytes_to_decode(image: Image.Image, factor: int) -> int:
    """What an opened picture needs of memory at most, by its header.

    That is Pillow's own pixels, what the format's decoder keeps beside them (as
    measured), and the RGB of the result: twice, if it may have to be turned.
    """
    count = image.width * image.height
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)
    turned = image.format == "PNG" or orientation(image) > 1  # a PNG's is not known yet
    result = 3 * (1 + turned)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # All coefficients of a progressive one, or of one whose colors come in turn,
        # are in memory: 2 bytes for each sample.
        most = max(h * v for _, h, v, _ in image.layer)
        samples = sum(h * v for _, h, v, _ in image.layer) / most
        decoder = 2 * samples * (not _is_one_scan(image))
        needed = decoder + (stored + result) / factor**2
    else:
        decoder = {"WEBP": 13, "AVIF": 10, "HEIF": 10, "GIF": 1}.get(
            image.format or "", 0
        )
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # a strip, as it is packed
            tags = image.tag_v2
            bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
            samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
            rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height)
            decoder = max(4, bits * samples / 8) * min(1, rows / image.height)
            decoder += stored * turned
        needed = stored + decoder + result / factor**2
    return int(count * needed) + _AROUND


def _is_one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the first scan of an opened JPEG has all its colors, and all their bits.

    Pillow has read the file to the end of this scan's header.
    """
    if image.info.get("progressive") or image.fp is None:
        return False
    end, length = image.fp.tell(), 6 + 2 * image.layers
    image.fp.seek(max(0, end - length))
    return image.fp.read(length)[:3] == bytes((0, length, image.layers))


class _Memory:
    """Bytes that threads share; each takes some once, so none waits for ever."""

    def __init__(self) -> None:
        self._taken, self._given = 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, bytes: int, limit: int) -> Iterator[None]:
        """Has `bytes` of `limit` in the block, as soon as the others leave so much."""
        with self._given:
            self._given.wait_for(lambda: self._taken + bytes <= limit)
            self._taken += bytes
        try:
            yield
        finally:
            with self._given:
                self._taken -= bytes
                self._given.notify_all()


_memory = _Memory()


def _notes(image: Image.Image) -> tuple[str | None, str | None]:
    """(taken, camera) from EXIF, then XMP; what is damaged or not there is None."""
    dates: list[object] = []
    camera = None
    with contextlib.suppress(Exception):  # notes may be damaged in any way
        exif = image.getexif()
        camera = _camera(exif.get(_MAKE), exif.get(_MODEL))
        dates.append(exif.get(_CHANGED))
        details = exif.get_ifd(_EXIF_IFD)
        dates[:0] = details.get(_ORIGINAL), details.get(_DIGITISED)
    with contextlib.suppress(Exception):
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
        text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp
        dates += _XMP_DATE.findall(text)
    return next(filter(None, map(_date, dates)), None), camera


def _date(value: object) -> str | None:
    """'YYYY-MM-DDTHH:MM:SS'; a time that no clock shows is the nearest of its day."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    if (found := _DATE.match(text)) is None:
        return None
    year, month, day, *clock = (int(number or 0) for number in found.groups())
    hour, minute, second = (23, 59, 59) if clock[0] > 23 else clock
    try:
        taken = datetime.datetime(
            year, month, day, hour, min(minute, 59), min(second, 59)
        )
    except ValueError:
        return None
    return taken.isoformat() if year >= _FIRST_PHOTOGRAPH else None


def _camera(make: object, model: object) -> str | None:
    """'NIKON', 'NIKON D50' → 'NIKON D50'; 'Apple', 'iPhone 12' → 'Apple iPhone 12'."""
    maker, name = (
        " ".join("".join(c for c in str(x or "") if c.isprintable()).split())[:80]
        for x in (make, model)
    )
    first = maker.split(" ")[0].lower()
    whole = name if first and name.lower().startswith(first) else f"{maker} {name}"
    return whole.strip() or None


def thumbnail(pixels: UInt8[np.ndarray, "height width 3"], size: int) -> bytes:
    """WebP of the picture, made smaller where a side is longer than `size`."""
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=80, method=2)
    return content.getvalue()


def check_folder(folder: Path) -> Path:
    """The absolute path of a folder of pictures.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    return folder.resolve()
