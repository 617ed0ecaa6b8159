"""Cells of a frozen CNN as a data root's region features.

    python main.py --config=configs/openmoji_cells.py --mode=prepare
    python -m studies.cells          (some minutes on two cores)

writes precomp/{train,dev,test}_ims.npy [images, 49, 1280], float32, beside the
captions (config.data.root of configs/openmoji_cells.py): the published layout of region
features, so that --mode=train takes them for regions. Files that are there are kept.
"""

from pathlib import Path

import jax
import numpy as np

from configs import openmoji_cells
from studies import efficientnet_lite as lite
from vse_jax.base.errors import InputError
from vse_jax.base.files import named_in_errors, whole_file
from vse_jax.base.progress import progress
from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image

SPLITS = ("train", "dev", "test")
_BATCH = 16


def write_cells(config: Config) -> list[Path]:
    """Writes the cells of each split that lacks them; returns the files of SPLITS.

    The config's root is one that --mode=prepare made with data.render_size 224.

    Raises:
        InputError: no such root, an image that is missing or has another size, or
            the CNN is not installed.
        OSError: a file cannot be written.
    """
    # As pixels, not as the regions that are still to be made.
    config = with_fields(config, {"image.kind": "grid", "image.input": "auto"})
    precomp = Path(config.data.root) / "precomp"
    files = {name: precomp / f"{name}_ims.npy" for name in SPLITS}
    missing = {name: file for name, file in files.items() if not file.exists()}
    splits = {name: read_split(config, name) for name in missing}
    network = lite.load_network(lite.weights_file()) if missing else None
    run = jax.jit(lite.cells)
    for name, file in missing.items():
        split = splits[name]
        assert isinstance(split.images, list)  # config.data.format is 'folder'
        shape = (len(split.images), lite.GRID**2, lite.CHANNELS)
        with named_in_errors(file), whole_file(file) as unfinished:
            rows = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            starts = range(0, len(rows), _BATCH)
            for start in progress(starts, f"cells of {name}", unit="batches"):
                images = np.stack([_load(i) for i in split.images[start:][:_BATCH]])
                # The last batch is filled up: one shape is one program.
                padded = np.resize(images, (_BATCH, *images.shape[1:]))
                found = run(network, lite.normalised(padded))
                rows[start : start + _BATCH] = found[: len(images)]
            rows.flush()
    return list(files.values())


def _load(path: Path) -> np.ndarray:
    image = load_image(path)
    if image.shape != (lite.SIZE, lite.SIZE, 3):
        height, width, _ = image.shape
        raise InputError(
            f"{path}: {width} × {height} pixels; prepare the images with "
            f"--config.data.render_size={lite.SIZE}"
        )
    return image


def main() -> None:
    set_up_logging()
    for path in write_cells(typed(openmoji_cells.get_config())):
        print(path)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
