"""Released checkpoints as workdirs of main.py, and back.

W/config.json                     rebuilt from the options and the tensors
W/checkpoints/best/0              the weights; 0: no step was made here
W/vocab.txt, W/vocab.json, …      the vocabulary, where one was found that fits
W/official.{json,safetensors}     what only the way back to PyTorch needs
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from jax.sharding import SingleDeviceSharding

from vse_jax.base.errors import InputError
from vse_jax.base.files import whole_folder
from vse_jax.checkpoints.runs import CONVERTED, Checkpoints
from vse_jax.checkpoints.torch import torch_file
from vse_jax.checkpoints.torch.options import Recipes
from vse_jax.checkpoints.torch.released import (
    Origin,
    Released,
    from_checkpoint,
    to_checkpoint,
)
from vse_jax.config import Config, load_config, save_config
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary
from vse_jax.models.build import abstract_model


def from_torch(
    file: Path, workdir: Path, recipes: Recipes, vocab: Path | None = None
) -> Released:
    """Converts a checkpoint of the official program into a new workdir.

    `epoch` is kept with the weights, not as a step: how many steps an epoch has depends
    on the data that training continues with.

    Args:
        file: of the official program.
        workdir: new folder.
        recipes: configs/common.py, see `options.config_of`.
        vocab: file of the model's vocabulary; None: one that fits is looked for.

    Raises:
        InputError: the file cannot be converted (see `torch_file` and `released`),
            `vocab` is not the model's, or `workdir` exists; nothing is left behind.
    """
    with whole_folder(workdir) as folder:
        released = from_checkpoint(torch_file.read(file), str(file), recipes)
        released.config.text.vocab = None if vocab is None else str(vocab)
        _copy_vocabulary(released.config, folder, workdir)
        save_config(released.config, folder / "config.json")
        _save_origin(released.origin, folder)
        progress = {"rsum": released.best_rsum, "epoch": released.epoch}
        with Checkpoints(folder) as checkpoints:
            checkpoints.save_best(CONVERTED, released.model, progress)
    return released


def to_torch(workdir: Path, file: Path) -> None:
    """Writes the best checkpoint of `workdir` as a file that the official code loads.

    Raises:
        InputError: no checkpoint there, a model that the official program does not
            have, or `file` cannot be written.
    """
    config = load_config(workdir / "config.json")
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir}: no checkpoints there; train first")
    device = SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        abstract_model(config)[1],
    )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.best_step()
        model, progress = checkpoints.restore_best(target)
    checkpoint = to_checkpoint(
        config,
        model,
        epoch=progress.get("epoch", 0),
        best_rsum=progress["rsum"],
        step=step or 0,
        origin=_load_origin(workdir),
    )
    torch_file.write(file, checkpoint)


def _copy_vocabulary(config: Config, folder: Path, workdir: Path) -> None:
    """The checkpoint has none; one that lies where it would be looked for may fit."""
    try:
        caption_tokenizer(config)
    except InputError:
        if config.text.vocab is not None:
            raise
        logging.warning(
            "%s: no vocabulary of this model's %d tokens is here: convert again with "
            "--vocab=FILE, or use the model with --config.text.vocab=FILE",
            workdir,
            config.text.vocab_size,
        )
    else:
        copy_vocabulary(config, folder)


def _save_origin(origin: Origin, folder: Path) -> None:
    fields = dataclasses.asdict(origin)
    unused = fields.pop("unused")
    text = json.dumps(fields, indent=1)
    (folder / "official.json").write_text(f"{text}\n", encoding="utf-8")
    dense = {key: np.asarray(x, order="C") for key, x in unused.items()}
    safetensors.numpy.save_file(dense, folder / "official.safetensors")


def _load_origin(folder: Path) -> Origin | None:
    """None for a model that was trained here from the start."""
    file = folder / "official.json"
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        unused = safetensors.numpy.load_file(folder / "official.safetensors")
        fields["prefixes"] = tuple(fields["prefixes"])
        return Origin(**fields, unused=unused)
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as e:
        raise InputError(f"{folder}: official.json or official.safetensors: {e}") from e
