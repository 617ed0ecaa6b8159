"""Precomputed region features: memory-mapped, never read as a whole."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from vse_jax.errors import InputError


class MappedArray:
    """A .npy file that is read row by row and travels to worker processes as its path.

    A pickled np.memmap would carry its content along: 33 GB for COCO's regions.
    `stride` n makes row i the file's row i * n.
    """

    def __init__(self, path: Path, stride: int = 1):
        self.path = path
        self.stride = stride
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not a whole .npy file ({error})") from None
        self._rows = array[::stride]

    def __reduce__(self):
        return MappedArray, (self.path, self.stride)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._rows.shape

    @property
    def dtype(self) -> np.dtype:
        return self._rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        return self._rows[rows]


def open_regions(
    path: Path,
    *,
    images: int,
    captions_per_image: int,
    max_regions: int,
    feature_dim: int,
) -> MappedArray:
    """Opens and checks the region features [images, regions, features] of a split.

    Some published files hold an image's features once for each of its captions; then
    only the first copy is used.

    Raises:
        InputError: no such file, not a float .npy, or a shape that does not fit.
    """
    regions = MappedArray(path)
    if regions.dtype.kind != "f" or len(regions.shape) != 3:
        raise InputError(
            f"{path}: {regions.dtype} values of shape {regions.shape} are no region "
            "features [images, regions, features]"
        )
    rows, sets, features = regions.shape
    if features != feature_dim or not 1 <= sets <= max_regions:
        raise InputError(
            f"{path}: {sets} regions of {features} features; config.image.max_regions "
            f"is {max_regions} and config.image.feature_dim {feature_dim}"
        )
    if rows == images:
        return regions
    if rows == images * captions_per_image:
        return MappedArray(path, stride=captions_per_image)
    raise InputError(f"{path}: {rows} rows for {images} images")


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
