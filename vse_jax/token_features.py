"""Token features of a frozen BERT, computed once for all captions of a split."""

import hashlib
from pathlib import Path

import jax
import numpy as np

from vse_jax.data.layout import Split
from vse_jax.data.regions import NpyRows
from vse_jax.errors import InputError
from vse_jax.evaluate import Evaluator


def cached_token_features(
    evaluator: Evaluator, model, split: Split, folder: Path
) -> NpyRows:
    """Last hidden states of every token of every caption, kept in a file.

    Args:
        evaluator: runs the model on the mesh.
        model: {"params", "batch_stats"}; its BERT must be frozen by the config's rules.
        split: whose captions.
        folder: where the file lives; made when missing. Its name holds a hash of the
            weights and of the tokens, so that another text or model never reuses it.

    Returns:
        float32 [sum of lengths, hidden]: token t of caption c is row offsets[c] + t of
        the split's `CaptionTokens`.

    Raises:
        InputError: the file cannot be written.
    """
    tokens = evaluator.tokens(split)
    bert = model["params"]["text"]["bert"]
    digest = hashlib.sha256(tokens.ids.tobytes() + tokens.offsets.tobytes())
    for leaf in jax.tree.leaves(bert):
        digest.update(np.asarray(leaf).tobytes())
    path = folder / f"{split.name}_tokens_{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        hidden = bert["embeddings"]["word"]["embedding"].shape[1]
        shape = (int(tokens.offsets[-1]), hidden)
        unfinished = path.with_suffix(".tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Ordinary writes: on a full disk, a memory map would kill the process.
            with unfinished.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                start = file.tell()
                for caption, features in evaluator.token_features(model, split):
                    file.seek(start + tokens.span(caption).start * hidden * 4)
                    file.write(np.asarray(features, "<f4").tobytes())
            unfinished.replace(path)
        except OSError as error:
            raise InputError(f"{unfinished}: {error.strerror}") from error
    return NpyRows(path)
