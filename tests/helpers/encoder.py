"""A model for tests of search: quick, without JAX."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vse_jax.data.images import load_image


class StandIn:
    """Vectors that look random and depend on the picture's pixels only."""

    takes_regions = False
    batch_size = 32
    trained_on = "openmoji"
    languages = ()
    cutoff = None
    cells_method = words_method = "exact"

    def __init__(self, name: str = "stand-in", dim: int = 8) -> None:
        self.name, self.fingerprint, self.dim = name, f"print of {name}", dim
        self.encoded = 0

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def encode_images(
        self, pictures: Sequence[Any], *, on_bad: str = "error", progress: bool = False
    ) -> np.ndarray:
        self.encoded += len(pictures)
        return np.stack([self._vector(picture) for picture in pictures])

    def _vector(self, picture: Any) -> np.ndarray:
        pixels = picture if isinstance(picture, np.ndarray) else load_image(picture)
        content = f"{pixels.shape}".encode() + pixels.tobytes()
        return self._unit(hashlib.sha256(content).digest())

    def encode_captions(
        self, captions: Sequence[str], *, progress: bool = False
    ) -> np.ndarray:
        return np.stack([self._unit(caption.encode()) for caption in captions])

    def _unit(self, seed: bytes) -> np.ndarray:
        rng = np.random.default_rng(list(seed))
        vector = rng.standard_normal(self.dim, np.float32)
        return vector / np.linalg.norm(vector)

    def image_attributions(self, picture: Any, vector: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def caption_attributions(
        self, caption: str, vector: np.ndarray
    ) -> list[tuple[str, float]]:
        raise NotImplementedError

    def explain(self, picture: Any, caption: str) -> Any:
        raise NotImplementedError

    def warm_up(self) -> None:
        pass
