"""Token features of a frozen BERT, computed once for all training captions."""

import hashlib
from pathlib import Path

import jax
import numpy as np

from vse_jax.data.captions import CaptionTokens
from vse_jax.data.layout import Split
from vse_jax.data.regions import MappedArray
from vse_jax.errors import InputError


def cached_token_features(
    evaluator, model, split: Split, tokens: CaptionTokens, folder: Path
) -> MappedArray:
    """Last hidden states of every token of every caption, as a memory-mapped file.

    Args:
        evaluator: runs the model on the mesh.
        model: {"params", "batch_stats"}; its BERT must be frozen by the config's rules.
        split: the split of the captions.
        tokens: the captions; token t of caption c is row `tokens.offsets[c] + t`.
        folder: where the file lives; made when missing. Its name holds a hash of the
            weights and of the tokens, so that another text or model never reuses it.

    Returns:
        float32 [sum of lengths, hidden], read-only.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model["params"]["text"]["bert"]):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(tokens.ids.tobytes() + tokens.offsets.tobytes())
    path = folder / f"token_features_{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npy")
        try:
            evaluator.write_token_features(model, split, tokens, temporary)
        except OSError as error:
            raise InputError(f"{temporary}: {error.strerror}") from error
        temporary.replace(path)
    return MappedArray(path)
