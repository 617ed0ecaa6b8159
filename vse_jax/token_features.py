"""Token features of a frozen BERT, computed once for all captions of a split.

Runs of one user share them: their files lie in ~/.cache/vse_jax/tokens, named by a hash
of all that they depend on. Several processes, whose home folders may be different ones,
keep theirs in the work folder.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from vse_jax import __version__
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, lock_file, make_room, whole_file
from vse_jax.config import Config
from vse_jax.data.dataset import Split
from vse_jax.data.regions import NpyRows
from vse_jax.distributed.runtime import matmul_precision
from vse_jax.evaluation.encode import Embedder


def features_folder(workdir: AnyPath) -> Path:
    """Where the features of a run's captions lie.

    Raises:
        InputError: that would be the work folder, and it is in a bucket.
    """
    shared = Path.home() / ".cache" / "vse_jax" / "tokens"
    if jax.process_count() == 1:
        with contextlib.suppress(OSError):
            shared.mkdir(parents=True, exist_ok=True)
        if os.access(shared, os.W_OK):
            return shared
    if not isinstance(workdir, Path):
        raise InputError(
            f"config.text.cache_features: {workdir} is no folder that the processes of "
            "this run could read files in"
        )
    return workdir / "cache"


def check_frozen(config: Config, trainable: Iterable[str]) -> None:
    """Raises InputError if a parameter of the text encoder is ever trained."""
    encoder = f"text/{config.text.kind}/"
    if any(path.removeprefix("lora/").startswith(encoder) for path in trainable):
        raise InputError(
            "config.text.cache_features: needs a rule in optimizer.rules that never "
            f"unfreezes ^{encoder}"
        )


def cached_token_features(
    embedder: Embedder, model, split: Split, folder: Path
) -> NpyRows:
    """Last hidden states of every token of every caption, kept in a file.

    Args:
        embedder: runs the model on the mesh.
        model: {"params", "batch_stats"}; the config's rules freeze its BERT or SigLIP.
        split: whose captions.
        folder: where the file lives; made when missing. Process 0 writes it, and all
            processes read it. Of several runs that need it at once each computes it,
            and the last one's stays.

    Returns:
        float32 [sum of lengths, hidden]: token t of caption c is row offsets[c] + t of
        the split's `CaptionTokens`.

    Raises:
        InputError: the file cannot be written.
    """
    tokens = embedder.tokens(split)
    text = embedder.config.text
    computed_by = (
        __version__,
        jax.default_backend(),
        embedder.config.compute_dtype,
        matmul_precision(embedder.config, jax.default_backend()),
        text.heads,  # which the weights do not show
    )
    digest = hashlib.sha256(repr(computed_by).encode())
    digest.update(tokens.ids.tobytes() + tokens.offsets.tobytes())
    if text.kind == "siglip":
        digest.update(repr(text.pad_id).encode())
    for leaf in jax.tree.leaves(model["params"]["text"][text.kind]):
        digest.update(_whole(leaf).tobytes())
    path = folder / f"{split.name}_tokens_{digest.hexdigest()[:32]}.npy"
    # All processes compute or none does, whatever they see of the folder by now.
    # (Only process 0 looks: a network file system may remember a "no" for a while.)
    there = jax.process_index() == 0 and path.exists()
    if not multihost_utils.broadcast_one_to_all(np.bool_(there)):
        shape = (int(tokens.offsets[-1]), text.hidden)
        captions = embedder.token_features(model, split)
        if jax.process_index() == 0:
            make_room(folder, 4 * shape[0] * shape[1])
            pieces = ((tokens.span(c).start, features) for c, features in captions)
            _write(path, shape, pieces)
        else:
            for _ in captions:
                pass
        multihost_utils.sync_global_devices(path.name)
    rows = NpyRows(path)
    rows.hold()
    return rows


def _whole(leaf) -> np.ndarray:
    """The leaf's values, also where other processes hold a part of it."""
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _write(path: Path, shape: tuple[int, int], pieces: Iterable) -> None:
    """Writes (first row, rows) pieces as an npy file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ordinary writes: on a full disk, a memory map would kill the process.
        with whole_file(path) as unfinished, unfinished.open("xb") as file:
            with contextlib.suppress(OSError):  # no locks here
                lock_file(file, shared=True)  # see make_room
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for row, values in pieces:
                file.seek(start + row * shape[1] * 4)
                file.write(np.asarray(values, "<f4").tobytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
