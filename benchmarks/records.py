"""Time to read an image's bytes or features in random order, from each data format.

python main.py --config=configs/openmoji.py --mode=prepare
python main.py --config=configs/openmoji.py --mode=export
python -m benchmarks.records

The images are the demo's; region features of the published size are made up in a
temporary folder (0.6 GB). All files were just written, so the disk plays no part.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from configs import coco_region, openmoji
from vse_jax.commands.export import export
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image

IMAGES, BATCH = 1024, 128
ROUNDS = 5


def main() -> None:
    config = typed(openmoji.get_config())
    measure(
        "an image, decoded",
        config,
        lambda split, image: load_image(split.images[image]),
    )
    with tempfile.TemporaryDirectory() as folder:
        # A region data root with one split.
        precomp = Path(folder) / "precomp"
        precomp.mkdir()
        (precomp / "train_ids.txt").write_text("\n".join(map(str, range(IMAGES))))
        (precomp / "train_caps.txt").write_text("a caption\n" * 5 * IMAGES)
        features = np.random.default_rng(0).random((IMAGES, 36, 2048), np.float32)
        np.save(precomp / "train_ims.npy", features)
        config = with_fields(typed(coco_region.get_config()), {"data.root": folder})
        with contextlib.redirect_stdout(io.StringIO()):
            export(config)
        # The sum reads all of it.
        measure("36 regions", config, lambda split, image: split.regions[image].sum())


def measure(what: str, config: Config, read: Callable[[Any, int], object]) -> None:
    """Prints medians over all images, batch by batch in one thread; ways take turns.

    `read`: reads an image of a split, by its number.
    """
    folder, tfds = (
        read_split(with_fields(config, {"data.format": form}), "train")
        for form in ("folder", "tfds")
    )
    records: Any = tfds.regions or tfds.images
    ways: dict[str, Callable[[list[int]], object]] = {
        f"folder: {what}": lambda batch: [read(folder, image) for image in batch],
        f"tfds: {what}": lambda batch: [read(tfds, image) for image in batch],
        "tfds: the record alone": lambda batch: [len(records.source[i]) for i in batch],
        f"tfds: the record, {BATCH} by one call": records.source.__getitems__,
    }
    order = np.random.default_rng(0).permutation(IMAGES).reshape(-1, BATCH).tolist()
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(1 + ROUNDS):  # the first one warms up
        for way, function in ways.items():
            start, spent = time.perf_counter(), time.process_time()
            for batch in order:
                function(batch)
            wall, cpu = time.perf_counter() - start, time.process_time() - spent
            times[way].append((1e6 * wall / IMAGES, 1e6 * cpu / IMAGES))
    for way, rounds in times.items():
        wall, cpu = map(statistics.median, zip(*rounds[1:], strict=True))
        print(f"{way}: {wall:.0f} µs, CPU {cpu:.0f} µs")


if __name__ == "__main__":
    main()
