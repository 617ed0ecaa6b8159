"""A model that knows colours only, and an index of coloured pictures.

python -m tests.helpers.searching FOLDER [PORT]    # serves an index made in FOLDER
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.drafts import draft
from vse_jax.config import SearchConfig
from vse_jax.data.images import load_image
from vse_search.indexing import update
from vse_search.store import Store

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 40),
    "purple": (130, 40, 160),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}
_RGB = np.array(list(COLOURS.values()), np.float32)


class ColourModel:
    """Vectors tell how much of each colour there is; [7] and one for all the rest."""

    dim = len(COLOURS) + 1
    name = "colours"
    fingerprint = "c0104a5"
    takes_regions = False
    batch_size = 32
    trained_on = "openmoji"
    languages = ()
    cutoff: float | None = None
    cells_method = words_method = "exact"

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds  # that a sentence takes
        self.sentences: list[str] = []  # that were encoded

    def prepare(self, pixels):
        return pixels

    def encode_images(self, pictures, *, on_bad="error", progress=False):
        return np.stack([_unit(self._cells(p).sum((0, 1))) for p in pictures])

    def encode_captions(self, captions, *, progress=False):
        time.sleep(self.seconds)
        self.sentences += captions
        return np.stack([_unit(_words(c)[1].sum(0)) for c in captions])

    def image_attributions(self, picture, vector):
        cells = self._cells(picture)
        return cells / np.linalg.norm(cells.sum((0, 1))) @ vector

    def caption_attributions(self, caption, vector):
        words, vectors = _words(caption)
        parts = vectors / np.linalg.norm(vectors.sum(0)) @ vector
        return list(zip(words, parts.tolist(), strict=True))

    def explain(self, picture, caption):
        raise NotImplementedError

    def warm_up(self):
        pass

    def _cells(self, picture) -> np.ndarray:
        """float32 [4, 4, dim]"""
        if not isinstance(picture, np.ndarray):
            picture = load_image(picture)
        small = Image.fromarray(picture).resize((4, 4), Image.Resampling.BOX)
        distances = np.linalg.norm(np.asarray(small)[:, :, None] - _RGB, axis=-1)
        near = np.exp(-distances / 40)
        rest = np.full((4, 4, 1), 0.02)
        return np.concatenate([near, rest], axis=-1).astype(np.float32)


def _words(caption: str) -> tuple[list[str], np.ndarray]:
    words = ["[CLS]", *caption.lower().split()]
    vectors = np.zeros((len(words), ColourModel.dim), np.float32)
    for row, word in zip(vectors, words, strict=True):
        row[[*COLOURS, word].index(word)] = 1 if word in COLOURS else 0.1
    return words, vectors


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def draw(
    path: Path, colour: str, size=(64, 48), exif: Image.Exif | None = None
) -> Path:
    """A picture of one colour with a little of another; no two paths look the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, COLOURS[colour])
    number = sum(os.fsencode(path.name))
    image.putpixel((number % size[0], 0), (number % 256, 0, 0))
    image.save(path, exif=exif or Image.Exif())
    return path


def notes(taken: str, camera: tuple[str, str]) -> Image.Exif:
    """EXIF of a photograph taken at 'YYYY:MM:DD HH:MM:SS'."""
    exif = Image.Exif()
    exif[0x0132] = taken
    exif[0x010F], exif[0x0110] = camera
    return exif


def draw_pictures(folder: Path) -> Path:
    """Seven pictures named by their colours, one of them in a folder, and a copy."""
    for number, colour in enumerate(COLOURS):
        exif = notes(f"2019:05:0{number + 1} 10:00:00", ("Nikon", f"D{number % 2}"))
        draw(folder / f"{colour}.jpg", colour, exif=exif)
    draw(folder / "trips" / "sea side.png", "blue", size=(48, 64))
    (folder / "trips" / "red again.jpg").write_bytes((folder / "red.jpg").read_bytes())
    return folder


def make_index(folder: Path, index: Path, model=None) -> Path:
    """Indexes `folder`, or brings the index in line with it."""
    model = model or ColourModel()
    if not Store.exists(index):
        Store.create(
            index,
            model=model.fingerprint,
            name=model.name,
            dim=model.dim,
            folder=folder.resolve(),
        )
    with Store.open(index, read_only=False) as store:
        update(store, model)
    return index


def options(**others) -> SearchConfig:
    """config.search with the values of configs/common.py."""
    config = draft().search
    config.update(others)
    return config


def main(folder: str, port: str = "0", seconds: str = "0", cutoff: str = "") -> None:
    from vse_search.serving import serve_index

    index = make_index(draw_pictures(Path(folder, "pictures")), Path(folder, "index"))

    class Slow(ColourModel):
        def encode_captions(self, captions, *, progress=False):
            self.seconds = 0.0 if captions == ["a picture"] else float(seconds)
            return super().encode_captions(captions)

    Slow.cutoff = float(cutoff) if cutoff else None
    serve_index(options(port=int(port)), index, Slow)


if __name__ == "__main__":
    main(*sys.argv[1:])
