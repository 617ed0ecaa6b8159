"""From which similarity a model takes an image for what a caption says.

A query of search then finds nothing where no image is as similar. A published SigLIP
knows by its own sigmoid; of any other model the similarity is fitted on its dev split
and kept in its folder, cutoff.json.
"""

import json
import math

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_object, write_atomically
from vse_jax.config import CUTOFF_FILE
from vse_jax.data.dataset import Split
from vse_jax.evaluation.encode import Embeddings

# In a batch of SigLIP's training one caption of 32,768 is an image's (Zhai et al.,
# 2023), so a pair of which nothing is known has 0.00003; this is 33 times as much. Half
# would leave out right images of a word or two. It is chosen, not measured: no
# published weights were at hand.
LEAST_PROBABILITY = 0.001
# Of dev's right pairs, above the fitted cut-off. Where precision equals recall, a model
# with a recall@1 of 41 % would find nothing for 56 % of its test captions.
KEPT = 0.9
_BLOCK = 2**24  # similarities in memory at a time, 64 MB


def sigmoid_cutoff(log_scale: float, bias: float) -> float:
    """Where σ(exp(log_scale) · similarity + bias) is `LEAST_PROBABILITY`."""
    logit = math.log(LEAST_PROBABILITY / (1 - LEAST_PROBABILITY))
    return (logit - bias) / math.exp(log_scale)


def recall_cutoff(
    images: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "c d"],
    caption_images: Int[np.ndarray, " c"],
) -> tuple[float, float]:
    """(the similarity that `KEPT` of the right pairs reach, images that do a caption).

    Args:
        images, captions: embeddings.
        caption_images: the row of the image that each caption belongs to.
    """
    right = np.einsum("cd,cd->c", captions, images[caption_images])
    least = float(np.quantile(right, 1 - KEPT, method="lower"))
    step = max(1, _BLOCK // len(images))
    blocks = (captions[i : i + step] @ images.T for i in range(0, len(captions), step))
    return least, sum(int((x >= least).sum()) for x in blocks) / len(captions)


def write_cutoff(workdir: AnyPath, split: Split, embeddings: Embeddings) -> None:
    """Fits the cut-off of the model in `workdir` on its dev split: cutoff.json."""
    images, captions = embeddings.images, embeddings.captions
    score, passing = recall_cutoff(images, captions, split.caption_images)
    about = {
        "score": score,
        "recall": KEPT,
        "images_per_caption": passing,
        "split": split.name,
        "images": len(images),
        "captions": len(captions),
        "dims": images.shape[1],
    }
    text = json.dumps(about, indent=1) + "\n"
    write_atomically(workdir / CUTOFF_FILE, text.encode())
    logging.info(
        "cut-off of search: %.3f, which %.0f %% of the right pairs of %s reach, and "
        "%.1f of its %d images for a caption",
        score,
        100 * KEPT,
        split.name,
        passing,
        len(images),
    )


def read_cutoff(folder: AnyPath, dims: int) -> float | None:
    """The similarity that a model's folder keeps; None: none of vectors so long.

    Raises:
        InputError: cutoff.json has none.
    """
    file = folder / CUTOFF_FILE
    if not file.is_file():
        return None
    found = read_object(file)
    score = found.get("score")
    if not isinstance(score, float) or not math.isfinite(score):
        raise InputError(f"{file}: score is {score!r}, no number")
    return score if found.get("dims") == dims else None
