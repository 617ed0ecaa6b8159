"""Checkpoints of the official program ⇄ config and model.

    {'epoch', 'model': [image tensors, text tensors], 'best_rsum', 'opt', 'Eiters'}

Sizes come from the tensors, the recipe from the options. In errors, img_enc and txt_enc
(the program's names of the towers) stand for the two state dicts.
"""

import argparse
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.checkpoints.torch.options import HEAD_SIZE, Recipes, config_of, options_of
from vse_jax.config import Config
from vse_jax.models.build import abstract_model

Arrays = Mapping[str, np.ndarray]

_PARALLEL = "module."  # torch.nn.DataParallel puts it before every key
_IMAGE, _TEXT = "img_enc.", "txt_enc."
_CLASSES = 1000  # of ImageNet, for the classifier that nobody uses

# The CNN is in the file twice: as a ResNet, and as numbered parts of that ResNet.
_RESNET = "img_enc.backbone.resnet."
CNN_PARTS = {
    "conv1": "base.0",
    "bn1": "base.1",
    "layer1": "base.4",
    "layer2": "base.5",
    "layer3": "base.6",
    "layer4": "top.0",
}

_SECOND_NAMES = keys.BACKBONE_TORCHVISION.under("backbone.resnet.", "backbone/")


@dataclass(frozen=True)
class Origin:
    """What the model has no use for, and only the way back to PyTorch needs.

    options: of the official program. iterations: its Eiters. prefixes: before the keys
    of the image and of the text tower. unused: tensors, by key without prefix.
    """

    options: dict[str, Any]
    iterations: int
    prefixes: tuple[str, str]
    unused: dict[str, np.ndarray]


@dataclass(frozen=True)
class Released:
    """A checkpoint in our terms.

    model: {"params", "batch_stats"}. epoch: finished epochs. best_rsum: on dev.
    """

    config: Config
    model: dict[str, Any]
    epoch: int
    best_rsum: float
    origin: Origin


def from_checkpoint(checkpoint: Any, source: str, recipes: Recipes) -> Released:
    """Takes a checkpoint apart.

    Args:
        checkpoint: what `torch_file.read` gave.
        source: the file's name, for the errors.
        recipes: see `options.config_of`.

    Raises:
        InputError: not a checkpoint of the official program, or of a model that is not
            supported; names every tensor that differs.
    """
    prefixes, stored = _state_dicts(checkpoint, source)
    tensors = _without_twins(torch_file.arrays(stored, source), source)
    image = _choose(_IMAGE_TOWERS, tensors, _IMAGE, source)
    text = _choose(_TEXT_TOWERS, tensors, _TEXT, source)
    options = checkpoint.get("opt", {})
    if isinstance(options, argparse.Namespace | types.SimpleNamespace):
        options = vars(options)
    if not isinstance(options, dict):
        raise InputError(f"{source}: 'opt' holds no options")
    options = {str(name): torch_file.plain(value) for name, value in options.items()}
    if not options:
        logging.info("%s: no options in it; the published ones are taken", source)
    sizes = image.sizes(tensors) | text.sizes(tensors)
    config = config_of(options, sizes, source, recipes)
    _, template = abstract_model(config)
    table = _table(image, text)
    return Released(
        config=config,
        model=keys.from_torch(tensors, table, template, source),
        epoch=_number(checkpoint, "epoch", source, int),
        best_rsum=_number(checkpoint, "best_rsum", source, float),
        origin=Origin(
            options=_as_json(options, source),
            iterations=_number(checkpoint, "Eiters", source, int),
            prefixes=prefixes,
            unused={key: x for key, x in tensors.items() if table.drops(key)},
        ),
    )


def _as_json(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options without those that are no JSON, such as a device."""
    kept = {}
    for name, value in options.items():
        try:
            exact = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError, RecursionError):
            exact = False
        if not exact:
            kind = (
                value if isinstance(value, torch_file.Refused) else type(value).__name__
            )
            logging.info("%s: option %s is left out: a %s", source, name, kind)
        else:
            kept[name] = value
    return kept


def to_checkpoint(
    config: Config,
    model: dict[str, Any],
    epoch: int,
    best_rsum: float,
    step: int,
    origin: Origin | None,
) -> dict[str, Any]:
    """Puts a checkpoint together that the official program loads.

    Args:
        config, model: of the run.
        epoch, best_rsum: where training stands, and the best dev score.
        step: finished steps here; 0 when it was converted and not trained further.
        origin: of a converted model; None for one that was trained here.

    Raises:
        InputError: the official program has no such model.
    """
    released = origin.options if origin else {}
    options = options_of(config, released)
    table = _table(_IMAGE_TOWERS[config.image.kind], _TEXT_TOWERS[config.text.kind])
    arrays = keys.to_torch(model["params"], table)
    arrays |= keys.to_torch(model["batch_stats"], table)
    arrays |= origin.unused if origin else _defaults(config, arrays)
    tensors = torch_file.tensors(arrays)
    tensors |= _twins(tensors)
    prefixes = origin.prefixes if origin else _prefixes(config)
    return {
        "epoch": epoch,
        "model": [
            {
                prefix + key.removeprefix(tower): tensor
                for key, tensor in tensors.items()
                if key.startswith(tower)
            }
            for prefix, tower in zip(prefixes, (_IMAGE, _TEXT), strict=True)
        ],
        "best_rsum": best_rsum,
        "opt": argparse.Namespace(**options),
        "Eiters": step or (origin.iterations if origin else 0),
    }


def _prefixes(config):
    """What the program puts before the keys: small models run on one GPU there."""
    small = (config.image.kind, config.text.kind) == ("region", "bigru")
    return ("", "") if small else (_PARALLEL, _PARALLEL)


def _state_dicts(checkpoint, source):
    """Prefixes of the two state dicts, and both as one under the towers' names."""
    model = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    two = isinstance(model, list | tuple) and len(model) == 2
    if not two or not all(isinstance(part, dict) and part for part in model):
        found = type(checkpoint).__name__
        if isinstance(checkpoint, dict):
            found = f"a dict of {', '.join(map(str, list(checkpoint)[:3]))}, …"
        raise InputError(
            f"{source}: no checkpoint of the official program: 'model' should hold the "
            f"image and the text state dict, the file is {found}"
        )
    stored, prefixes = {}, []
    for tower, kinds, part in zip(
        (_IMAGE, _TEXT), (_IMAGE_TOWERS, _TEXT_TOWERS), model, strict=True
    ):
        # The CNN may be there under its second names alone.
        tables = [kind.table for kind in kinds.values()]
        tables.append(keys.GRID_TOWER + _SECOND_NAMES)
        named = {str(key): tensor for key, tensor in part.items()}
        _, prefix, tensors = keys.unwrapped(named, tables, source)
        prefixes.append(prefix)
        stored |= {tower + key: tensor for key, tensor in tensors.items()}
    return (prefixes[0], prefixes[1]), stored


def _without_twins(tensors: Arrays, source: str) -> dict[str, np.ndarray]:
    """Checks that the two copies of the CNN are equal, and keeps one."""
    single: dict[str, np.ndarray] = {}
    differing = []
    for key, tensor in tensors.items():
        name, _, rest = key.removeprefix(_RESNET).partition(".")
        if key.startswith(_RESNET) and name in CNN_PARTS:
            twin = f"{_IMAGE}backbone.{CNN_PARTS[name]}.{rest}"
            if not np.array_equal(tensors.get(twin, tensor), tensor):
                differing.append(f"{key} and {twin}")
            key = twin
        single.setdefault(key, tensor)
    if differing:
        raise InputError(
            f"{source}: the two copies of the CNN differ: {', '.join(differing)}"
        )
    return single


def _twins(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The second names of the CNN's tensors (the same objects: stored once)."""
    twins = {}
    for name, part in CNN_PARTS.items():
        start = f"{_IMAGE}backbone.{part}."
        for key, tensor in tensors.items():
            if key.startswith(start):
                twins[f"{_RESNET}{name}.{key.removeprefix(start)}"] = tensor
    return twins


class _Tower(NamedTuple):
    """One kind of tower: how to know it, its tensors, its sizes as config fields."""

    mark: str  # regex of keys that no other kind has
    table: keys.Table
    sizes: Callable[[Arrays], dict[str, Any]]


def _size(tensors: Arrays, key: str, axis: int, default: int) -> int:
    """A tensor's size; `default` where there is none, which `from_torch` reports."""
    shape = tensors[key].shape if key in tensors else ()
    return (shape[axis] if len(shape) > axis else 0) or default


def _count(tensors: Arrays, start: str) -> int:
    """How many numbers follow `start` in the keys: the length of a stack of layers."""
    found = (re.match(re.escape(start) + r"\.(\d+)\.", key) for key in tensors)
    return len({match[1] for match in found if match})


def _region_sizes(tensors):
    return {
        "image.kind": "region",
        "embed_dim": _size(tensors, "img_enc.fc.weight", 0, 1024),
        "image.feature_dim": _size(tensors, "img_enc.fc.weight", 1, 2048),
    }


def _grid_sizes(tensors):
    cnn = "img_enc.backbone"
    width = _size(tensors, f"{cnn}.base.0.weight", 0, 64)
    conv2 = f"{cnn}.base.4.0.conv2.weight"
    channels, per_group = _size(tensors, conv2, 0, 64), _size(tensors, conv2, 1, 64)
    stages = [part for name, part in CNN_PARTS.items() if name.startswith("layer")]
    return {
        "image.kind": "grid",
        "embed_dim": _size(tensors, "img_enc.image_encoder.fc.weight", 0, 1024),
        "image.backbone.layers": tuple(_count(tensors, f"{cnn}.{s}") for s in stages),
        "image.backbone.width": width,
        "image.backbone.groups": channels // per_group,
        "image.backbone.group_width": per_group * 64 // width,
    }


def _bert_sizes(tensors):
    bert = "txt_enc.bert"
    embeddings = f"{bert}.embeddings"
    word = f"{embeddings}.word_embeddings.weight"
    hidden = _size(tensors, word, 1, 768)
    ffn = f"{bert}.encoder.layer.0.intermediate.dense.weight"
    position = f"{embeddings}.position_embeddings.weight"
    return {
        "text.kind": "bert",
        "text.vocab_size": _size(tensors, word, 0, 30522),
        "text.hidden": hidden,
        "text.layers": _count(tensors, f"{bert}.encoder.layer"),
        "text.heads": max(hidden // HEAD_SIZE, 1),
        "text.ffn": _size(tensors, ffn, 0, 3072),
        "text.max_positions": _size(tensors, position, 0, 512),
    }


def _bigru_sizes(tensors):
    embed = "txt_enc.embed.weight"
    layers = [key for key in tensors if key.startswith("txt_enc.rnn.weight_ih_l")]
    return {
        "text.kind": "bigru",
        "text.vocab_size": _size(tensors, embed, 0, 1),
        "text.word_dim": _size(tensors, embed, 1, 300),
        "text.layers": max(len(layers) // 2, 1),  # each in two directions
    }


_IMAGE_TOWERS = {
    "region": _Tower(r"(fc|mlp)\.", keys.REGION_TOWER, _region_sizes),
    "grid": _Tower(r"(backbone|image_encoder)\.", keys.GRID_TOWER, _grid_sizes),
}
_TEXT_TOWERS = {
    "bert": _Tower(r"bert\.", keys.BERT_TOWER, _bert_sizes),
    "bigru": _Tower(r"(embed|rnn)\.", keys.BIGRU_TOWER, _bigru_sizes),
}


def _choose(towers, tensors, name, source):
    """The kind of tower whose keys are among those that start with `name`."""
    found = [key.removeprefix(name) for key in tensors if key.startswith(name)]
    for tower in towers.values():
        if any(re.match(tower.mark, key) for key in found):
            return tower
    raise InputError(
        f"{source}: {name[:-1]} is neither of {', '.join(towers)}: "
        f"it holds {', '.join(found[:3])}, …"
    )


def _table(image: _Tower, text: _Tower) -> keys.Table:
    return image.table.under(_IMAGE, "image/") + text.table.under(_TEXT, "text/")


def _number(checkpoint, name, source, kind):
    value = checkpoint.get(name, 0)
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{source}: {name!r} is {value!r}, not a number") from None


def _defaults(config: Config, arrays: Arrays) -> dict[str, np.ndarray]:
    """What a fresh official model holds under the keys that our models lack.

    Zeros where it would draw random numbers: nothing ever reads them.
    """

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    unused = {}
    if config.text.kind == "bert":
        pooler, hidden = "txt_enc.bert.pooler.dense", config.text.hidden
        unused[f"{pooler}.weight"] = zeros(hidden, hidden)
        unused[f"{pooler}.bias"] = zeros(hidden)
    if config.image.kind == "region":
        start = "img_enc.mlp.bns.1."
        for name, value in (("weight", 1), ("running_var", 1), ("bias", 0)):
            unused[start + name] = zeros(config.embed_dim) + np.float32(value)
        unused[f"{start}running_mean"] = zeros(config.embed_dim)
    else:
        channels = arrays["img_enc.image_encoder.fc.weight"].shape[1]
        unused[f"{_RESNET}fc.weight"] = zeros(_CLASSES, channels)
        unused[f"{_RESNET}fc.bias"] = zeros(_CLASSES)
    for key in [*arrays, *unused]:
        if key.endswith(".running_mean"):
            counter = key.removesuffix("running_mean") + "num_batches_tracked"
            unused[counter] = np.array(0)
    return unused
