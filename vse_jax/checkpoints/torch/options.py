"""The official program's options (an argparse.Namespace) ⇄ our config."""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch.backbones import KINDS
from vse_jax.config import (
    Config,
    Fields,
    flat_fields,
    grid_rules,
    region_rules,
    with_fields,
)

HEAD_SIZE = 64  # of every published BERT; no tensor's shape shows it

_DATA_SUFFIX = "_precomp"  # data_name is coco_precomp or f30k_precomp
_SCALE_1 = 256  # px; image side at input_scale_factor 1
_OPTIMIZERS = {"adam": "adamw", "sgd": "sgd"}


class _Option(NamedTuple):
    """The mapping of an option to a field, there and back.

    `to_field` raises ValueError for a value that the field cannot have.
    """

    field: str
    to_field: Callable[[Any], Any] = lambda value: value
    to_option: Callable[[Any], Any] = lambda value: value


def _one_of(table: Mapping[str, Any]) -> Callable[[str], Any]:
    def look_up(name: str) -> Any:
        if name not in table:
            raise ValueError(f"none of {', '.join(table)}")
        return table[name]

    return look_up


# An option that is absent has the value of the published recipe's field.
_OPTIONS = {
    "num_epochs": _Option("num_epochs"),
    "batch_size": _Option("batch_size"),
    "learning_rate": _Option("optimizer.learning_rate"),
    "lr_update": _Option("optimizer.lr_update"),
    "grad_clip": _Option("optimizer.clip"),
    "margin": _Option("loss.margin"),
    "vse_mean_warmup_epochs": _Option("loss.vse_mean_warmup_epochs"),
    "no_imgnorm": _Option("image.normalise", operator.not_, operator.not_),
    "no_txtnorm": _Option("text.normalise", operator.not_, operator.not_),
    "data_name": _Option(
        "data.name",
        lambda name: name.removesuffix(_DATA_SUFFIX),
        lambda name: name + _DATA_SUFFIX,
    ),
    "optim": _Option(
        "optimizer.name",
        _one_of(_OPTIMIZERS),
        {field: option for option, field in _OPTIMIZERS.items()}.get,
    ),
}
_GRID_OPTIONS = {
    "input_scale_factor": _Option(
        "image.size",
        lambda scale: int(_SCALE_1 * scale),
        lambda pixels: pixels / _SCALE_1,
    ),
}
# Written only: on the way here, the tensors' shapes say it.
_SIZES = {"embed_size": _Option("embed_dim")}
_BIGRU_SIZES = {
    "word_dim": _Option("text.word_dim"),
    "num_layers": _Option("text.layers"),
}


def config_of(
    options: Mapping[str, Any],
    sizes: Fields,
    source: str,
) -> Config:
    """The config of a released model.

    An option that is absent leaves the published recipe's value. `max_violation` is
    not read: the program sets it while it trains, so that a saved one says nothing.
    Paths of the author's machine are left out, too.

    Args:
        options: name → value.
        sizes: config fields (dotted) that the tensors decide, image.kind among them.
        source: the file's name, for the errors.

    Raises:
        InputError: an option of the wrong type or of an unknown value.
    """
    published = flat_fields(Config())

    def given(name: str, default: Any, to_field=lambda value: value) -> Any:
        value = options.get(name, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        try:
            if type(value) is not type(default):
                raise ValueError(f"not {type(default).__name__}")
            return to_field(value)
        except ValueError as error:
            what = f"{source}: option {name} is {value!r}"
            raise InputError(f"{what}, {error}") from None

    is_grid = sizes["image.kind"] == "grid"
    fields = dict(sizes)
    for name, option in (_OPTIONS | (_GRID_OPTIONS if is_grid else {})).items():
        default = option.to_option(published[option.field])
        fields[option.field] = given(name, default, option.to_field)
    data, sgd = fields["data.name"], fields["optimizer.name"] == "sgd"
    fields["data.root"] = f"data/{data}"
    fields["data.dev_captions"] = 5000  # as the program validates
    fields["eval.split"] = "testall" if data == "coco" else "test"
    if is_grid:
        # Without the option only the groups tell ResNet from ResNeXt.
        source_default = "wsl" if fields["image.backbone.groups"] > 1 else "detector"
        cnn = given("backbone_source", source_default, _one_of(KINDS))
        warmup = given("embedding_warmup_epochs", 1)
        fields |= {
            "image.backbone.block": cnn.block,
            "image.pixels": cnn.pixels,
            "loss.ramp_epoch": warmup,
            "optimizer.rules": grid_rules(
                embedding_warmup=warmup,
                backbone_warmup=given("backbone_warmup_epochs", 0),
                backbone=given("backbone_lr_factor", 0.01),
            ),
        }
        if sgd:
            fields["optimizer.nesterov"] = True
            fields["optimizer.weight_decay_on"] = "^image/backbone/"
    else:  # what the program does with region features without asking an option
        fields["loss.ramp_epoch"] = -1
        fields["optimizer.rules"] = region_rules()
        if sgd:
            fields["optimizer.weight_decay"] = 0.0
        elif fields["text.kind"] == "bigru":
            fields["optimizer.weight_decay"] = 0.01  # PyTorch's, as none is given
    return with_fields(Config(), fields)


def options_of(config: Config, released: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which the official program rebuilds the config's model.

    Args:
        config: of the model.
        released: options that it was converted from, which stay where the config does
            not say otherwise; empty for a model that was trained here.

    Raises:
        InputError: a model that the official program has no options for.
    """
    fields = flat_fields(config)
    grid, bigru = config.image.kind == "grid", config.text.kind == "bigru"
    needed: dict[str, tuple] = {
        "image.pool": ("gpo",),
        "text.pool": ("gpo",),
        "text.kind": ("bert", "bigru"),
        "optimizer.name": tuple(_OPTIMIZERS.values()),
    }
    if grid:
        needed["image.backbone.stem"] = ("conv7",)
        needed["image.backbone.block"] = ("v1", "torchvision")
        needed["image.backbone.batch_norm"] = ("frozen",)
    if config.text.kind == "bert":
        needed["text.heads"] = (max(config.text.hidden // HEAD_SIZE, 1),)
    for field, values in needed.items():
        if fields[field] not in values:
            raise InputError(
                f"config.{field}: the official program has no {fields[field]!r}"
            )

    table = _OPTIONS | _SIZES
    table |= _GRID_OPTIONS if grid else {}
    table |= _BIGRU_SIZES if bigru else {}
    options = {
        name: option.to_option(fields[option.field]) for name, option in table.items()
    }
    # What the program reads before anything else, and a model trained here never had.
    defaults = {
        "data_path": config.data.root,
        "img_dim": config.image.feature_dim,
        "max_violation": True,
        "precomp_enc_type": "backbone" if grid else "basic",
        "backbone_source": "detector",
        "backbone_path": "",
    }
    if bigru:
        defaults["vocab_path"] = str(Path(config.data.root).parent / "vocab")
        defaults["vocab_size"] = config.text.vocab_size
    if grid:
        known = released.get("backbone_source")
        options["backbone_source"] = _backbone_source(config, known)
        rules = {pattern: rest for pattern, *rest in config.optimizer.rules}
        layer4 = rules.get("^image/backbone/layer4/")
        layer3 = rules.get("^image/backbone/layer3/")
        if layer4 and layer3:  # else no options give the CNN its rules
            (factor, epoch), (_, next_epoch) = layer4, layer3
            options["backbone_lr_factor"] = factor
            options["embedding_warmup_epochs"] = epoch
            options["backbone_warmup_epochs"] = next_epoch - epoch
    return defaults | dict(released) | options


def _backbone_source(config: Config, released: str | None) -> str:
    """The kind of the config's CNN; several may fit, then the released one if it does.

    The number of blocks does not count: a smaller model is still of its kind.
    """
    cnn, pixels = config.image.backbone, config.image.pixels
    fitting = [
        name
        for name, kind in KINDS.items()
        if (kind.block, kind.pixels) == (cnn.block, pixels)
    ]
    if not fitting:
        raise InputError(
            f"config.image: the official program has no {cnn.block} blocks with "
            f"{pixels} pixels"
        )
    exact = [name for name in fitting if KINDS[name].layers == tuple(cnn.layers)]
    return released if released in fitting else (exact or fitting)[0]
