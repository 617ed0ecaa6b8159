"""Precomputed region features: read row by row, never as a whole."""

import contextlib
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, lock_file, named_in_errors
from vse_jax.config import ImageConfig

# How files begin that are not what their name says.
FILE_KINDS = {
    b"PK": "a .npz or another zip archive",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
}


class NpyRows:
    """A .npy file that is read row by row and travels to worker processes as its path.

    Reads the file instead of mapping it: a pickled np.memmap would carry its content
    along (33 GB for COCO's regions), all that was read through a map counts as resident
    memory, and rows in random order are read faster.
    `stride` n makes row i the file's row i * n.
    """

    def __init__(self, path: Path, stride: int = 1):
        self.path = path
        self.stride = stride
        try:
            with path.open("rb") as file:
                _check_begin(path, file.read(64))
            # The map only checks the header and the file's size.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not a whole .npy file ({error})") from None
        if not array.flags.c_contiguous:
            raise InputError(f"{path}: columns before rows (Fortran order)")
        self.shape: tuple[int, ...] = array[::stride].shape if array.ndim else ()
        self.dtype: np.dtype = array.dtype
        self._start = array.offset  # bytes before the first row
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def hold(self) -> None:
        """Marks the file as used now, and as in use while this object lives."""
        with contextlib.suppress(OSError):  # another user's, or no locks here
            os.utime(self.path)
            lock_file(self._descriptor, shared=True)

    def __reduce__(self):
        return NpyRows, (self.path, self.stride)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """A row, or the rows of a slice without step; not to be written to."""
        wanted = range(len(self))[rows]
        if isinstance(wanted, int):
            return self._read(wanted, 1)[0]
        assert wanted.step == 1
        return self._read(wanted.start, len(wanted))

    def _read(self, first: int, count: int) -> np.ndarray:
        row = math.prod(self.shape[1:])
        rows = max((count - 1) * self.stride + 1, 0)
        size = rows * row * self.dtype.itemsize
        start = self._start + first * self.stride * row * self.dtype.itemsize
        # At a place of its own: threads share the open file.
        with named_in_errors(self.path):
            content = os.pread(self._descriptor, size, start)
        if len(content) < size:
            raise InputError(f"{self.path}: ends before row {first + count - 1}")
        values = np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])
        return values[:: self.stride]


def _check_begin(path: Path, begin: bytes) -> None:
    """Raises InputError that says what a file is, unless it begins as a .npy does."""
    if begin.startswith(b"\x93NUMPY"):
        return
    kind = next(
        (kind for magic, kind in FILE_KINDS.items() if begin.startswith(magic)), ""
    )
    if not begin:
        kind = "empty"
    elif not kind:
        text = all(byte in b"\t\n\r" or byte >= 32 for byte in begin)
        kind = "a text file" if text else "something else"
    raise InputError(f"{path}: {kind}, not a .npy file")


def lengths_file(path: Path) -> Path:
    """Beside a split's region features: how many regions each of its sets has.

    int32 [images]; not there if all sets fill their rows.
    """
    return path.with_name(path.name.removesuffix("_ims.npy") + "_lengths.npy")


class NpyRegions:
    """The region features of a split in a .npy file, each set checked when it is read.

    Set i is that of image_ids[i]; `stride` as for `NpyRows`. `lengths`: how many
    regions each set has, where rows after them are padding.
    """

    def __init__(
        self,
        path: Path,
        image_ids: Sequence[str],
        stride: int = 1,
        lengths: Int[np.ndarray, " images"] | None = None,
    ):
        self.path = path
        self.rows = NpyRows(path, stride)
        self.shape = self.rows.shape
        self.lengths = lengths
        self._image_ids = image_ids

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, image: int) -> Float32[np.ndarray, "regions features"]:
        """The features of an image.

        Raises:
            InputError: NaN or infinity (names the file, row, image and region).
        """
        image = range(len(self))[image]
        where = f"{self.path}, row {image * self.rows.stride}"
        if image < len(self._image_ids):  # a dev split may be cut
            where += f", image id {self._image_ids[image]!r}"
        features = self.rows[image]
        if self.lengths is not None:
            features = features[: self.lengths[image]]
        return finite_regions(features, where)


def finite_regions(
    features: Shaped[np.ndarray, "regions features"], where: str
) -> Float32[np.ndarray, "regions features"]:
    """Region features as float32.

    Raises:
        InputError: NaN or infinity, or too large for float32; begins with `where` and
            names the region, counted from 0.
    """
    with np.errstate(over="ignore"):
        features = features.astype(np.float32, copy=False)
    finite = np.isfinite(features)
    if not finite.all():
        region = np.flatnonzero(~finite.all(axis=1))[0]
        raise InputError(f"{where}: NaN or infinity in region {region}")
    return features


def open_regions(
    path: Path,
    image_ids: Sequence[str],
    captions_per_image: Int[np.ndarray, " images"],
    config: ImageConfig,
) -> NpyRegions:
    """Opens and checks the region features [images, regions, features] of a split.

    Some published files hold an image's features once for each of its captions; then
    only the first copy is used.

    Args:
        path: of the .npy file.
        image_ids: name the rows in errors; those of a split that is cut.
        captions_per_image: of all images that the split's lists hold.
        config: config.image.

    Raises:
        InputError: no such file, not a float .npy, or a shape that does not fit.
    """
    stored = NpyRows(path)
    if stored.dtype.kind != "f" or len(stored.shape) != 3:
        raise InputError(
            f"{path}: {stored.dtype} values of shape {stored.shape} are no region "
            "features [images, regions, features]"
        )
    rows, images = len(stored), len(captions_per_image)
    check_region_shape(path, stored.shape[1:], config)
    if rows == images:
        return NpyRegions(path, image_ids, lengths=_read_lengths(path, stored.shape))
    if np.all(rows == images * captions_per_image):
        return NpyRegions(path, image_ids, stride=int(captions_per_image[0]))
    raise InputError(f"{path}: {rows} rows for {images} images")


def _read_lengths(
    path: Path, shape: tuple[int, ...]
) -> Int[np.ndarray, " images"] | None:
    """How many regions each set of a feature file has; None: all fill their rows."""
    file = lengths_file(path)
    if not file.is_file():
        return None
    lengths = NpyRows(file)
    if lengths.shape != shape[:1] or lengths.dtype.kind not in "iu":
        raise InputError(
            f"{file}: {lengths.dtype} values of shape {lengths.shape} are no lengths "
            f"of {shape[0]} sets"
        )
    values = lengths[:]
    wrong = np.flatnonzero((values < 1) | (values > shape[1]))
    if wrong.size:
        raise InputError(
            f"{file}, row {wrong[0]}: {values[wrong[0]]} is not between 1 and "
            f"{shape[1]}"
        )
    return values


def check_region_shape(path: AnyPath, shape: tuple, config: ImageConfig) -> None:
    """Raises InputError unless sets of this shape fit the config."""
    regions, features = shape
    if features != config.feature_dim or not 1 <= regions <= config.max_regions:
        raise InputError(
            f"{path}: {regions} regions of {features} features; "
            f"config.image.max_regions is {config.max_regions} and "
            f"config.image.feature_dim {config.feature_dim}"
        )


def drop_regions(
    features: Float[np.ndarray, "regions features"],
    rng: np.random.Generator,
    probability: float,
) -> Float[np.ndarray, "kept features"]:
    """Size augmentation: drops each region with `probability`, keeps at least one."""
    keep = rng.random(len(features)) >= probability
    if not keep.any():
        keep[rng.integers(len(features))] = True
    return features[keep]
