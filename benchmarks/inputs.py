"""What both sides compute on: batches as the pipeline makes them, by NumPy's seeds."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.rows import PIPELINE_BATCHES
from configs import coco_grid, coco_region
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.collate import Batch, CaptionCollator, image_shapes, packing_devices
from vse_jax.data.dataset import write_root
from vse_jax.data.regions import drop_regions
from vse_jax.data.tokenizers import caption_tokenizer

# One WordPiece each. A caption of n tokens has n − 2 of them.
_WORDS = """
    a man woman dog cat horse train bus street table plate pizza of on in with the
    standing sitting riding next to near white black red large small people two water
    field grass snow board ball game park kitchen room window building sign light
""".split()  # noqa: SIM905 (a list of strings would take forty lines)
_SHORTEST, _LONGEST = 8, 25  # tokens
_WIDTH, _HEIGHT = 640, 480


def grid_config(size: int = 256, batch_size: int = 16) -> Config:
    """The recipe of coco_grid at another size, from random weights."""
    changes = {"image.weights": None, "text.weights": None}
    sizes = {"image.size": size, "batch_size": batch_size}
    return with_fields(typed(coco_grid.get_config()), changes | sizes)


def region_config() -> Config:
    """The recipe of coco_region, from random weights."""
    return with_fields(typed(coco_region.get_config()), {"text.weights": None})


def recipe(kind: str) -> Config:
    """'grid' or 'region'."""
    return grid_config() if kind == "grid" else region_config()


def texts(count: int) -> list[str]:
    """Captions of 8 to 25 tokens, most of 10 to 16, as COCO's are."""
    rng = np.random.default_rng(0)
    lengths = rng.normal(13, 3, count).round().astype(int)
    lengths = lengths.clip(_SHORTEST, _LONGEST)
    lengths[:2] = _SHORTEST, _LONGEST
    return [" ".join(rng.choice(_WORDS, length - 2)) for length in lengths]


def captions(config: Config, count: int, train: bool) -> Batch:
    """A batch's part of the captions for one device, augmented in training."""
    tokens = caption_tokenizer(config)(texts(count))
    rows = CaptionCollator(config, tokens, None, pack=packing_devices(config, 1))
    length, packed = rows.bucket_of(np.arange(count))
    batch = rows.empty(count, length)
    rng = np.random.default_rng(1) if train else None
    for row in range(count):
        rows.read(batch, row, row, rng)
    rows.set_packed_indices(batch, packed, count)
    return batch


def images(config: Config, count: int) -> Batch:
    """A training batch's images: pixels as normalised, or thinned region sets."""
    rng = np.random.default_rng(2)
    shapes = image_shapes(config.image, count)
    if config.image.kind == "grid":
        shape, _ = shapes["images"]
        return {"images": rng.normal(0, 60, shape).astype(np.float32)}
    shape, _ = shapes["regions"]
    batch = {
        "regions": np.zeros(shape, np.float32),
        "region_lengths": np.zeros(count, np.int32),
    }
    for row in range(count):
        features = rng.random(shape[1:], np.float32)
        kept = drop_regions(features, rng, config.image.drop)
        batch["regions"][row, : len(kept)] = kept
        batch["region_lengths"][row] = len(kept)
    return batch


def training_batch(config: Config) -> Batch:
    """A batch of the config's size."""
    return images(config, config.batch_size) | captions(config, config.batch_size, True)


def with_photographs(config: Config, count: int) -> Config:
    """The config over a new folder for temporary files: its split train has JPEG files
    of COCO's size, five captions each.

    The photographs are noise of all scales, as real ones are: about 160 KB a file.
    """
    root = Path(tempfile.mkdtemp())
    (root / "images").mkdir()
    rng = np.random.default_rng(3)
    files = {str(number): f"{number}.jpg" for number in range(count)}
    for file in files.values():
        image = np.full((_HEIGHT, _WIDTH, 3), 128.0)
        for octave in range(1, 9):
            cells = rng.normal(0, 120 / 1.43**octave, (3 * 2**octave, 4 * 2**octave, 3))
            image += cv2.resize(cells, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
        pixels = image.clip(0, 255).astype(np.uint8)
        path = str(root / "images" / file)
        cv2.imwrite(path, pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    five = np.reshape(texts(5 * count), (count, 5)).tolist()
    rows = zip(files, five, strict=True)
    write_root(root, {"train": rows}, files)
    return with_fields(config, {"data.root": str(root)})


def time_batches(batches: Iterator[object]) -> float:
    """Seconds of the pipeline's row, after two batches that pay for its start."""
    next(batches), next(batches)
    start = time.perf_counter()
    for _ in range(PIPELINE_BATCHES):
        next(batches)
    return time.perf_counter() - start


def embeddings(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors: of images [count, size], of five captions each near them."""
    rng = np.random.default_rng(4)
    images = rng.standard_normal((count, size), np.float32)
    noise = rng.standard_normal((5 * count, size), np.float32)
    near = images.repeat(5, axis=0) + 4 * noise
    for vectors in (images, near):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return images, near
