"""Time to read an image's bytes or features in random order, from each data format.

python main.py --config=configs/openmoji.py --mode=prepare
python main.py --config=configs/openmoji.py --mode=export
python -m benchmarks.records

The images are the demo's; region features of the published size are made up in a
temporary folder (0.6 GB). All files were just written, so the disk plays no part.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import coco_region, openmoji
from vse_jax.commands.export import export
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image

IMAGES = 1000


def main() -> None:
    measure("picture, decoded", typed(openmoji.get_config()), _picture)
    with tempfile.TemporaryDirectory() as folder:
        config = with_fields(typed(coco_region.get_config()), {"data.root": folder})
        write_regions(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):
            export(config)
        measure("36 regions", config, _regions)


def _picture(split, image: int) -> None:
    load_image(split.images[image])


def _regions(split, image: int) -> None:
    split.regions[image].sum()  # all of it is read


def measure(what: str, config: Config, read: Callable) -> None:
    """Prints the median of five rounds over 1000 images in one thread."""
    order = np.random.default_rng(0).permutation(IMAGES).tolist()
    for form in ("folder", "tfds"):
        split = read_split(with_fields(config, {"data.format": form}), "train")
        rounds = []
        for _ in range(6):
            start = time.perf_counter()
            for image in order:
                read(split, image)
            rounds.append((time.perf_counter() - start) / IMAGES)
        print(f"{form}: {1e6 * np.median(rounds[1:]):.0f} µs a {what}")


def write_regions(root: Path) -> None:
    """A region data root with one split."""
    precomp = root / "precomp"
    precomp.mkdir()
    ids = "".join(f"{i}\n" for i in range(IMAGES))
    (precomp / "train_ids.txt").write_text(ids)
    (precomp / "train_caps.txt").write_text("a caption\n" * 5 * IMAGES)
    rng = np.random.default_rng(0)
    np.save(precomp / "train_ims.npy", rng.random((IMAGES, 36, 2048), np.float32))


if __name__ == "__main__":
    main()
