"""Cells of a frozen CNN as a data root's region features.

    python main.py --config=configs/openmoji_cells.py --mode=prepare
    python -m studies.cells          (some minutes on two cores)

writes precomp/{train,dev,test}_ims.npy [pictures, 49, 1280], float32, beside the
captions (config.data.root of configs/openmoji_cells.py): the published layout of region
features, so that --mode=train takes them for regions. Files that are there are kept.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from configs import openmoji_cells
from studies import efficientnet_lite as lite
from vse_jax.base.errors import InputError
from vse_jax.base.progress import progress
from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.config import Config
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image

SPLITS = ("train", "dev", "test")
_BATCH = 16


def write_cells(config: Config) -> list[Path]:
    """Writes the cells of every split's pictures that lacks them.

    Args:
        config: of a root that --mode=prepare made with data.render_size 224.

    Returns:
        The files, in the order of SPLITS.

    Raises:
        InputError: no such root, a picture that is missing or has another size, or a
            file that cannot be written.
    """
    # As pixels, not as the regions that are still to be made.
    config = config.copy_and_resolve_references()
    config.image.kind, config.image.input = "grid", "auto"
    network = None
    files = []
    for name in SPLITS:
        split = read_split(config, name)
        path = Path(config.data.root) / "precomp" / f"{name}_ims.npy"
        files.append(path)
        if path.exists():
            continue
        network = network or lite.load_network(lite.weights_file())
        assert isinstance(split.images, list)  # config.data.format is 'folder'
        batches = _batches(network, split.images, name)
        _write(path, len(split.images), batches)
    return files


def _batches(
    network: lite.Network, pictures: list[Path], split: str
) -> Iterator[Float[np.ndarray, "b 49 1280"]]:
    run = jax.jit(lite.cells)
    starts = range(0, len(pictures), _BATCH)
    for start in progress(starts, f"cells of {split}", unit="batches"):
        some = np.stack([_load(path) for path in pictures[start : start + _BATCH]])
        # The last batch is filled up: one shape is one program.
        padded = np.resize(some, (_BATCH, *some.shape[1:]))
        yield np.asarray(run(network, lite.normalised(padded)))[: len(some)]


def _load(path: Path) -> np.ndarray:
    picture = load_image(path)
    if picture.shape != (lite.SIZE, lite.SIZE, 3):
        height, width, _ = picture.shape
        raise InputError(
            f"{path}: {width} × {height} pixels; prepare the pictures with "
            f"--config.data.render_size={lite.SIZE}"
        )
    return picture


def _write(path: Path, rows: int, batches: Iterator[np.ndarray]) -> None:
    """Writes [rows, 49, 1280] whole or not at all, a batch at a time."""
    shape = (rows, lite.GRID**2, lite.CHANNELS)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    unfinished = path.with_name(f".{path.name}")
    try:
        with unfinished.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                file.write(batch.astype("<f4").tobytes())
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    set_up_logging()
    for path in write_cells(openmoji_cells.get_config()):
        print(path)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
