"""What search asks of a model; `vse_jax.Model` has it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8


@runtime_checkable
class Encoder(Protocol):
    """Turns images and captions into vectors of length 1; threads may share it."""

    dim: int  # D, the size of a vector
    name: str  # for people
    trained_on: str | None  # name of the data that it has learned from
    languages: Sequence[str]  # that it was trained in, ISO 639 codes; none: not known
    cutoff: float | None  # a caption and an image that fit are as similar; not known
    takes_regions: bool  # an image is an array of region features, no file
    batch_size: int  # images that it computes at a time

    @property
    def cells_method(self) -> str | None:
        """How a similarity is split over cells: 'exact', 'integrated gradients'.

        None: it cannot be, and `image_attributions` raises InputError.
        """
        ...

    @property
    def words_method(self) -> str | None:
        """The same of words and `caption_attributions`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the parameters and the preprocessing: tells whose a vector is."""
        ...

    def prepare(self, pixels: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        """What `encode_images` takes, too: as large as the model's input."""
        ...

    def encode_images(
        self, images: Sequence[np.ndarray]
    ) -> Float32[np.ndarray, "N D"]: ...

    def encode_captions(
        self, captions: Sequence[str]
    ) -> Float32[np.ndarray, "C D"]: ...

    def image_attributions(
        self, image: UInt8[np.ndarray, "H W 3"], vector: Float32[np.ndarray, " D"]
    ) -> Float32[np.ndarray, "rows columns"]:
        """What each cell adds to <image embedding, vector>."""
        ...

    def caption_attributions(
        self, caption: str, vector: Float32[np.ndarray, " D"]
    ) -> list[tuple[str, float]]:
        """What each word adds to <caption embedding, vector>."""
        ...

    def warm_up(self) -> None:
        """Compiles what single queries need."""
        ...
