"""A run's best model as a folder that others can load: W/share/."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_bytes, read_object, whole_folder, write_atomically
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.card import PLACEHOLDER, Facts, is_as_written, write_card
from vse_jax.checkpoints.runs import Checkpoints, has_checkpoint
from vse_jax.config import MODEL_FILE, Config, own_vocabulary, save_shared_config
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary

CARD = "README.md"


def write_shared(
    config: Config,
    workdir: Path,
    model: dict[str, Any],
    repository: str | None,
    published: Config,
) -> Path:
    """Writes W/share/, or writes it anew; a card that was changed by hand stays.

    Args:
        config: of the run.
        workdir: of the run.
        model: {"params", "batch_stats"} of its best checkpoint, on the host.
        repository: USER/NAME on the Hub; None: not known yet.
        published: the paper's recipe, for the card.

    Raises:
        InputError: no vocabulary, or the folder cannot be written.
    """
    caption_tokenizer(config)  # another model's vocabulary is refused
    target = workdir / "share"
    with whole_folder(target, replace=True) as folder:
        before = target / CARD
        kept = read_bytes(before) if before.is_file() else None
        save_shared_config(config, folder / "config.json")
        copy_vocabulary(config, folder)
        write_arrays(folder / MODEL_FILE, flatten(model))
        if kept is None or is_as_written(kept.decode(errors="replace")):
            facts = _facts(
                config,
                workdir,
                model,
                repository or PLACEHOLDER,
                own_vocabulary(folder, config.text.kind),
            )
            card = write_card(config, published, facts).encode()
        else:
            logging.warning(
                "%s: kept as you changed it; remove it to have it written anew", before
            )
            name = (repository or PLACEHOLDER).encode()
            card = kept.replace(PLACEHOLDER.encode(), name)
        write_atomically(folder / CARD, card)
    return target


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by their names, floating-point ones as float32.

    Raises:
        InputError: the file cannot be written.
    """
    found = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    for name, x in found.items():
        if np.issubdtype(x.dtype, np.floating):
            found[name] = x.astype(np.float32, copy=False)
    try:
        safetensors.numpy.save_file(found, file, metadata={"format": "vse_jax"})
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file}: {error}") from None


def _facts(
    config: Config,
    workdir: Path,
    model: dict[str, Any],
    repository: str,
    vocabulary: Path | None,
) -> Facts:
    progress: dict[str, Any] = {}
    since = 0.0
    if has_checkpoint(workdir):
        with Checkpoints(workdir, read_only=True) as checkpoints:
            progress = checkpoints.best_progress()
            best = workdir / "checkpoints" / "best" / str(checkpoints.best_step())
            since = best.stat().st_mtime
    facts = workdir / "run.json"
    data = read_object(facts).get("data", {}) if facts.is_file() else {}
    return Facts(
        name=workdir.resolve().name,
        repository=repository,
        parameters=sum(math.prod(x.shape) for x in flatten(model["params"]).values()),
        progress=progress,
        splits={name: size for name, size in data.items() if name != "root"},
        evaluations=_evaluations(workdir, since),
        vocabulary=vocabulary.name if vocabulary else "",
    )


def _evaluations(workdir: Path, since: float) -> dict[str, Any]:
    """Split → metrics, of the evaluations of the best model, alone."""
    found = {}
    for file in sorted(workdir.glob("eval_*.json")):
        metrics = read_object(file)
        if file.stat().st_mtime < since:
            logging.warning(
                "%s: older than the best checkpoint, left out; evaluate again", file
            )
        elif "rsum" in metrics and "ensemble" not in metrics:
            found[file.stem.removeprefix("eval_")] = metrics
    return found
