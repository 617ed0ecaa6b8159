"""Checkpoints of the official program ⇄ runs of main.py.

    {'epoch', 'model': [image tensors, text tensors], 'best_rsum', 'opt', 'Eiters'}

Sizes come from the tensors, the recipe from the options. In errors, img_enc and txt_enc
(the program's names of the encoders) stand for the two state dicts. The run's folder:

    W/config.json                     rebuilt from the options and the tensors
    W/checkpoints/0                   the weights; 0: no step was made here
    W/vocab.txt, W/vocab.json, …      the vocabulary, if one was found that fits
    W/official.{json,safetensors}     what only the way back to PyTorch needs
"""

import argparse
import dataclasses
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from vse_jax.base.buckets import BucketPath
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, local_copy, whole_folder
from vse_jax.checkpoints.runs import CONVERTED, Checkpoints, TrainProgress
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.checkpoints.torch.options import HEAD_SIZE, config_of, options_of
from vse_jax.config import Config, load_config, save_config, with_fields
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary
from vse_jax.distributed.mesh import on_one_device, state_sharding, with_sharding
from vse_jax.models.build import abstract_model

Arrays = Mapping[str, np.ndarray]

_IMAGE, _TEXT = "img_enc.", "txt_enc."
_PARALLEL = "module."  # torch.nn.DataParallel puts it before every key
# The CNN is in a file twice: as numbered parts, and under aliases as a ResNet.
_PARTS, _ALIASES = "img_enc.backbone.", "img_enc.backbone.resnet."
_CLASSES = 1000  # of ImageNet, for the classifier that nobody uses
_BROKEN = (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError)


@dataclass(frozen=True)
class ConversionInfo:
    """What the model has no use for, and only the way back to PyTorch needs.

    options: of the official program. iterations: its Eiters. prefixes: before the keys
    of the image and of the text encoder. unused: tensors, by key without prefix.
    """

    options: dict[str, Any]
    iterations: int
    prefixes: tuple[str, str]
    unused: dict[str, np.ndarray]


@dataclass(frozen=True)
class Released:
    """A checkpoint in our terms.

    model: {"params", "batch_stats"}. epoch: finished epochs. best_rsum: on dev. info:
    of a converted model; None for one that was trained here.
    """

    config: Config
    model: dict[str, Any]
    epoch: int
    best_rsum: float
    info: ConversionInfo | None


# ---- Files ⇄ runs --------------------------------------------------------------------


def checkpoint_to_run(
    file: Path, workdir: AnyPath, vocab: Path | None = None
) -> Released:
    """Converts a checkpoint of the official program into a new workdir.

    `epoch` is kept with the weights, not as a step: how many steps an epoch has depends
    on the data that training continues with. `vocab`: file of the model's vocabulary;
    None: one that fits is looked for.

    Raises:
        InputError: the file cannot be converted (see `torch_file` and
            `from_checkpoint`), `vocab` is not the model's, or `workdir` exists; nothing
            is left behind.
    """
    with whole_folder(workdir) as folder:
        released = from_checkpoint(torch_file.read(file), str(file))
        assert released.info is not None
        config = with_fields(released.config, {"text.vocab": vocab and str(vocab)})
        try:
            # The checkpoint has none; one that lies where runs look may fit.
            caption_tokenizer(config)
        except InputError:
            if vocab is not None:
                raise
            logging.warning(
                "%s: no vocabulary of this model's %d tokens is here: convert again "
                "with --vocab=FILE, or use the model with --config.text.vocab=FILE",
                workdir,
                config.text.vocab_size,
            )
        else:
            copy_vocabulary(config, folder)
        save_config(config, folder / "config.json")
        info = dataclasses.asdict(released.info)
        unused = folder / "official.safetensors"
        torch_file.write_safetensors(unused, info.pop("unused"))
        text = json.dumps(info, indent=1)
        (folder / "official.json").write_text(f"{text}\n", encoding="utf-8")
        progress = TrainProgress(
            best_rsum=released.best_rsum,
            best_step=CONVERTED,
            best_epoch=released.epoch,
        )
        to_copy = isinstance(workdir, BucketPath)
        with Checkpoints(folder, to_copy=to_copy) as checkpoints:
            checkpoints.save(released.model, None, progress)
    return released


def run_to_checkpoint(workdir: AnyPath, file: Path) -> None:
    """Writes the best checkpoint of `workdir` as a file that the official code loads.

    Raises:
        InputError: no checkpoint there, a model that the official program does not
            have, or `file` cannot be written.
    """
    config, mesh = on_one_device(load_config(workdir / "config.json"))
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir}: no checkpoints there; train first")
    _, abstract = abstract_model(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        model, progress = checkpoints.restore_best(
            with_sharding(abstract, state_sharding(mesh, abstract))
        )
    info, about = None, workdir / "official.json"
    if about.exists():  # else it was trained here from the start
        try:
            fields = json.loads(about.read_text(encoding="utf-8"))
            with local_copy(workdir / "official.safetensors") as local:
                unused = safetensors.numpy.load_file(local)
            fields["prefixes"] = tuple(fields["prefixes"])
            info = ConversionInfo(**fields, unused=unused)
        except _BROKEN as error:
            raise InputError(
                f"{workdir}: official.json or official.safetensors: {error}"
            ) from error
    best = Released(config, model, progress.best_epoch, progress.best_rsum, info)
    torch_file.write(file, to_checkpoint(best, progress.best_step or 0))


# ---- Their contents ------------------------------------------------------------------


def from_checkpoint(checkpoint: Any, source: str) -> Released:
    """Takes apart what `torch_file.read` gave of the file `source`.

    Raises:
        InputError: not a checkpoint of the official program, or of a model that is not
            supported; names every tensor that differs.
    """
    prefixes, stored = _state_dicts(checkpoint, source)
    tensors = _without_aliases(torch_file.arrays(stored, source), source)
    encoders = []
    for name, kinds in _ENCODERS.items():
        found = [k.removeprefix(name) for k in tensors if k.startswith(name)]
        fitting = [e for e in kinds.values() if any(re.match(e.mark, k) for k in found)]
        if not fitting:
            raise InputError(
                f"{source}: {name[:-1]} is neither of {', '.join(kinds)}: "
                f"it holds {', '.join(found[:3])}, …"
            )
        encoders.append(fitting[0])
    image, text = encoders

    options = checkpoint.get("opt", {})
    if isinstance(options, argparse.Namespace | types.SimpleNamespace):
        options = vars(options)
    if not isinstance(options, dict):
        raise InputError(f"{source}: 'opt' holds no options")
    options = {str(name): torch_file.plain(value) for name, value in options.items()}
    if not options:
        logging.info("%s: no options in it; the published ones are taken", source)
    kept = {}
    for name, value in options.items():
        try:
            if json.loads(json.dumps(value)) == value:
                kept[name] = value
                continue
        except (TypeError, ValueError, RecursionError):
            pass  # no JSON, such as a device
        refused = isinstance(value, torch_file.Refused)
        what = value if refused else type(value).__name__
        logging.info("%s: option %s is left out: a %s", source, name, what)

    def number(name: str, kind: type) -> Any:
        value = checkpoint.get(name, 0)
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{source}: {name!r} is {value!r}, not a number") from None

    sizes = image.sizes(tensors) | text.sizes(tensors)
    config = config_of(options, sizes, source)
    _, template = abstract_model(config)
    table = _table(image, text)
    unused = {key: x for key, x in tensors.items() if table.ignores(key)}
    return Released(
        config=config,
        model=keys.from_torch(tensors, table, template, source),
        epoch=number("epoch", int),
        best_rsum=number("best_rsum", float),
        info=ConversionInfo(kept, number("Eiters", int), prefixes, unused),
    )


def to_checkpoint(released: Released, step: int = 0) -> dict[str, Any]:
    """Puts a checkpoint together that the official program loads.

    `step`: finished steps here; 0 when it was converted and not trained further.

    Raises:
        InputError: the official program has no such model.
    """
    config, info = released.config, released.info
    kinds = (config.image.kind, config.text.kind)
    options = options_of(config, info.options if info else {})
    image, text = (e[k] for e, k in zip(_ENCODERS.values(), kinds, strict=True))
    arrays = keys.to_torch(released.model, _table(image, text))
    arrays |= info.unused if info else _fresh_tensors(config, arrays)
    tensors = torch_file.tensors(arrays)
    for name, part in keys.OFFICIAL_CNN.items():
        start = f"{_PARTS}{part}."
        for key in [key for key in tensors if key.startswith(start)]:
            alias = f"{_ALIASES}{name}.{key.removeprefix(start)}"
            tensors[alias] = tensors[key]  # the same object: stored once
    # Small models run on one GPU there, the others in DataParallel.
    prefix = "" if kinds == ("region", "bigru") else _PARALLEL
    prefixes = info.prefixes if info else (prefix, prefix)
    return {
        "epoch": released.epoch,
        "model": [
            {
                prefix + key.removeprefix(encoder): tensor
                for key, tensor in tensors.items()
                if key.startswith(encoder)
            }
            for prefix, encoder in zip(prefixes, _ENCODERS, strict=True)
        ],
        "best_rsum": released.best_rsum,
        "opt": argparse.Namespace(**options),
        "Eiters": step or (info.iterations if info else 0),
    }


def _state_dicts(checkpoint: Any, source: str) -> tuple[tuple[str, str], dict]:
    """Prefixes of the two state dicts, and both as one under the encoders' names."""
    model: Any = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    two = isinstance(model, list | tuple) and len(model) == 2
    if not two or not all(isinstance(part, dict) and part for part in model):
        found = type(checkpoint).__name__
        if isinstance(checkpoint, dict):
            found = f"a dict of {', '.join(map(str, list(checkpoint)[:3]))}, …"
        raise InputError(
            f"{source}: no checkpoint of the official program: 'model' should hold the "
            f"image and the text state dict, the file is {found}"
        )
    stored: dict[str, Any] = {}
    prefixes = []
    for (encoder, kinds), part in zip(_ENCODERS.items(), model, strict=True):
        tables = [kind.table for kind in kinds.values()]
        tables.append(keys.GRID_ENCODER_TORCHVISION)  # the CNN's aliases may be alone
        named = {str(key): tensor for key, tensor in part.items()}
        _, prefix, tensors = keys.unwrapped(named, tables, source)
        prefixes.append(prefix)
        stored |= {encoder + key: tensor for key, tensor in tensors.items()}
    return (prefixes[0], prefixes[1]), stored


def _without_aliases(tensors: Arrays, source: str) -> dict[str, np.ndarray]:
    """Checks that the two copies of the CNN are equal, and keeps one."""
    single: dict[str, np.ndarray] = {}
    differing = []
    for key, tensor in tensors.items():
        name, _, rest = key.removeprefix(_ALIASES).partition(".")
        if key.startswith(_ALIASES) and name in keys.OFFICIAL_CNN:
            alias, key = key, f"{_PARTS}{keys.OFFICIAL_CNN[name]}.{rest}"
            if not np.array_equal(tensors.get(key, tensor), tensor):
                differing.append(f"{alias} and {key}")
        single.setdefault(key, tensor)
    if differing:
        raise InputError(
            f"{source}: the two copies of the CNN differ: {', '.join(differing)}"
        )
    return single


def _fresh_tensors(config: Config, arrays: Arrays) -> dict[str, np.ndarray]:
    """What a fresh official model holds under the keys that our models lack.

    Zeros instead of random numbers: nothing ever reads them.
    """

    shapes: dict[str, tuple[int, ...]] = {}
    if config.text.kind == "bert":
        pooler, hidden = "txt_enc.bert.pooler.dense", config.text.hidden
        shapes[f"{pooler}.weight"], shapes[f"{pooler}.bias"] = (hidden,) * 2, (hidden,)
    if config.image.kind == "region":
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"img_enc.mlp.bns.1.{name}"] = (config.embed_dim,)
    else:
        channels = arrays["img_enc.image_encoder.fc.weight"].shape[1]
        shapes[f"{_ALIASES}fc.weight"] = (_CLASSES, channels)
        shapes[f"{_ALIASES}fc.bias"] = (_CLASSES,)
    unused = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    for key, tensor in unused.items():  # a batch norm's
        if key.endswith((".1.weight", ".1.running_var")):
            tensor += 1
    for key in [*arrays, *unused]:
        if key.endswith(".running_mean"):
            counter = key.removesuffix("running_mean") + "num_batches_tracked"
            unused[counter] = np.array(0)
    return unused


# ---- The kinds of encoders -----------------------------------------------------------


class _Encoder(NamedTuple):
    """One kind: how to know it, its tensors, its sizes as config fields."""

    mark: str  # regex of keys that no other kind has
    table: keys.Table
    sizes: Callable[[Arrays], dict[str, Any]]


def _table(image: _Encoder, text: _Encoder) -> keys.Table:
    image_table = image.table.with_prefix(_IMAGE, "image/")
    return image_table + text.table.with_prefix(_TEXT, "text/")


def _size(tensors: Arrays, key: str, axis: int, default: int) -> int:
    """A tensor's size; `default` if there is none, which `from_torch` reports."""
    shape = tensors[key].shape if key in tensors else ()
    return (shape[axis] if len(shape) > axis else 0) or default


def _count(tensors: Arrays, start: str) -> int:
    """How many layers the keys number behind `start`."""
    found = (re.match(re.escape(start) + r"\.(\d+)\.", key) for key in tensors)
    return len({match[1] for match in found if match})


def _region_sizes(tensors: Arrays) -> dict[str, Any]:
    return {
        "image.kind": "region",
        "embed_dim": _size(tensors, "img_enc.fc.weight", 0, 1024),
        "image.feature_dim": _size(tensors, "img_enc.fc.weight", 1, 2048),
    }


def _grid_sizes(tensors: Arrays) -> dict[str, Any]:
    width = _size(tensors, f"{_PARTS}base.0.weight", 0, 64)
    conv2 = f"{_PARTS}base.4.0.conv2.weight"
    channels, per_group = _size(tensors, conv2, 0, 64), _size(tensors, conv2, 1, 64)
    stages = ("base.4", "base.5", "base.6", "top.0")
    return {
        "image.kind": "grid",
        "embed_dim": _size(tensors, "img_enc.image_encoder.fc.weight", 0, 1024),
        "image.backbone.layers": tuple(_count(tensors, _PARTS + s) for s in stages),
        "image.backbone.width": width,
        "image.backbone.groups": channels // per_group,
        "image.backbone.group_width": per_group * 64 // width,
    }


def _bert_sizes(tensors: Arrays) -> dict[str, Any]:
    embeddings, layers = "txt_enc.bert.embeddings", "txt_enc.bert.encoder.layer"
    word = f"{embeddings}.word_embeddings.weight"
    hidden = _size(tensors, word, 1, 768)
    position = f"{embeddings}.position_embeddings.weight"
    return {
        "text.kind": "bert",
        "text.vocab_size": _size(tensors, word, 0, 30522),
        "text.hidden": hidden,
        "text.layers": _count(tensors, layers),
        "text.heads": max(hidden // HEAD_SIZE, 1),
        "text.ffn": _size(tensors, f"{layers}.0.intermediate.dense.weight", 0, 3072),
        "text.max_positions": _size(tensors, position, 0, 512),
    }


def _bigru_sizes(tensors: Arrays) -> dict[str, Any]:
    layers = [key for key in tensors if key.startswith("txt_enc.rnn.weight_ih_l")]
    return {
        "text.kind": "bigru",
        "text.vocab_size": _size(tensors, "txt_enc.embed.weight", 0, 1),
        "text.word_dim": _size(tensors, "txt_enc.embed.weight", 1, 300),
        "text.layers": max(len(layers) // 2, 1),  # each in two directions
    }


_ENCODERS = {
    _IMAGE: {
        "region": _Encoder(r"(fc|mlp)\.", keys.REGION_ENCODER, _region_sizes),
        "grid": _Encoder(r"(backbone|image_encoder)\.", keys.GRID_ENCODER, _grid_sizes),
    },
    _TEXT: {
        "bert": _Encoder(r"bert\.", keys.BERT_ENCODER, _bert_sizes),
        "bigru": _Encoder(r"(embed|rnn)\.", keys.BIGRU_ENCODER, _bigru_sizes),
    },
}
