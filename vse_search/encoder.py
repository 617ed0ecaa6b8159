"""What search needs of a model; vse_jax.api.Model has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures and captions into vectors of length 1; threads may share it."""

    @property
    def dim(self) -> int:
        """D, the size of a vector."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def trained_on(self) -> str | None:
        """Name of the data that it has learned from; None: unknown."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the parameters and the preprocessing: tells whose a vector is."""
        ...

    @property
    def takes_regions(self) -> bool:
        """Whether a picture is an array of region features, no file."""
        ...

    @property
    def batch_size(self) -> int:
        """Pictures that it computes at a time."""
        ...

    def prepare(self, pixels: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        """What `encode_images` takes, too: as large as the model's input."""
        ...

    def encode_images(
        self,
        pictures: Sequence[Any],
        *,
        on_bad: Literal["error", "skip"] = "error",
        progress: bool = False,
    ) -> Float32[np.ndarray, "N D"]:
        """Of files, uint8 arrays [H, W, 3], what `prepare` gives of them, or
        (`takes_regions`) float arrays [k, F]."""
        ...

    def encode_captions(
        self, captions: Sequence[str], *, progress: bool = False
    ) -> Float32[np.ndarray, "C D"]:
        """Of sentences."""
        ...

    def image_attributions(
        self, picture: Path | str | np.ndarray, vector: Float32[np.ndarray, " D"]
    ) -> Float32[np.ndarray, "..."]:
        """What each cell [rows, columns] adds to <image embedding, vector>."""
        ...

    def caption_attributions(
        self, caption: str, vector: Float32[np.ndarray, " D"]
    ) -> list[tuple[str, float]]:
        """What each word adds to <caption embedding, vector>."""
        ...

    def explain(self, picture: Path | str | np.ndarray, caption: str) -> Any:
        """Both, for the similarity of a picture and a caption."""
        ...

    def warm_up(self) -> None:
        """Compiles what single queries need."""
        ...
