"""The official program's options (an argparse.Namespace) ⇄ our config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from vse_jax.base.config import flat_fields
from vse_jax.base.errors import InputError
from vse_jax.convert.backbones import KINDS

HEAD_SIZE = 64  # of every published BERT; no tensor's shape shows it

# Options whose values our fields take over as they are.
_SAME = {
    "num_epochs": "num_epochs",
    "batch_size": "batch_size",
    "learning_rate": "optimizer.learning_rate",
    "lr_update": "optimizer.lr_update",
    "grad_clip": "optimizer.clip",
    "margin": "loss.margin",
    "vse_mean_warmup_epochs": "loss.vse_mean_warmup_epochs",
}
_OPTIMIZERS = {"adam": "adamw", "sgd": "sgd"}
_DATA_SUFFIX = "_precomp"  # data_name is coco_precomp or f30k_precomp
_SCALE_1 = 256  # px; image side at input_scale_factor 1


@runtime_checkable
class Recipes(Protocol):
    """The published recipes: the module configs/common.py.

    The converter's command line passes it in; the package itself does not depend on the
    configs.
    """

    def base(self) -> ConfigDict: ...

    def grid_rules(
        self, embedding_warmup: int, backbone_warmup: int, backbone: float
    ) -> tuple: ...

    def region_rules(self) -> tuple: ...


def config_of(
    options: Mapping[str, Any],
    sizes: Mapping[str, Any],
    source: str,
    recipes: Recipes,
) -> ConfigDict:
    """Returns the config of a released model.

    An option that is absent leaves the published recipe's value. `max_violation` is
    not read: the program sets it while it trains, so that a saved one says nothing.
    Paths of the author's machine are left out, too.

    Args:
      options: name → value.
      sizes: config fields (dotted) that the tensors decide, image.kind among them.
      source: the file's name, for the errors.
      recipes: gives the values that the options do not.

    Raises:
      InputError: an option of the wrong type or of an unknown value.
    """

    def option(name: str, default: Any) -> Any:
        value = options.get(name, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            expected = type(default).__name__
            raise InputError(f"{source}: option {name} is {value!r}, not {expected}")
        return value

    config = recipes.base()
    published = flat_fields(config)
    fields = dict(sizes)
    for theirs, ours in _SAME.items():
        fields[ours] = option(theirs, published[ours])
    fields["image.normalise"] = not option("no_imgnorm", False)
    fields["text.normalise"] = not option("no_txtnorm", False)
    data_name = option("data_name", "coco").removesuffix(_DATA_SUFFIX)
    fields["data.name"] = data_name
    fields["data.dev_captions"] = 5000  # as the program validates
    fields["data.root"] = f"data/{data_name}"
    fields["eval.split"] = "testall" if data_name == "coco" else "test"
    optimizer = option("optim", "adam")
    fields["optimizer.name"] = _known(_OPTIMIZERS, optimizer, f"{source}: option optim")
    if sizes["image.kind"] == "region":
        fields["loss.ramp_epoch"] = -1
        config.optimizer.rules = recipes.region_rules()
        if optimizer == "sgd":
            fields["optimizer.weight_decay"] = 0.0
        elif sizes["text.kind"] == "bigru":
            fields["optimizer.weight_decay"] = 0.01  # PyTorch's, as none is given
    else:
        # Without the option only the groups tell ResNet from ResNeXt.
        grouped = sizes["image.backbone.groups"] > 1
        name = option("backbone_source", "wsl" if grouped else "detector")
        kind = _known(KINDS, name, f"{source}: option backbone_source")
        fields["image.backbone.block"] = kind.block
        fields["image.pixels"] = kind.pixels
        fields["image.size"] = int(_SCALE_1 * option("input_scale_factor", 2.0))
        warmup = option("embedding_warmup_epochs", 1)
        fields["loss.ramp_epoch"] = warmup
        config.optimizer.rules = recipes.grid_rules(
            embedding_warmup=warmup,
            backbone_warmup=option("backbone_warmup_epochs", 0),
            backbone=option("backbone_lr_factor", 0.01),
        )
        if optimizer == "sgd":
            fields["optimizer.nesterov"] = True
            fields["optimizer.weight_decay_on"] = "^image/backbone/"
    config.update_from_flattened_dict(fields)
    return config


def options_of(config: ConfigDict, released: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with which the official program rebuilds the config's model.

    Args:
      config: of the model.
      released: options that it was converted from, which stay where the config does
        not say otherwise; empty for a model that was trained here.

    Raises:
      InputError: a model that the official program has no options for.
    """
    _check_official(config)
    fields = flat_fields(config)
    optimizers = {ours: theirs for theirs, ours in _OPTIMIZERS.items()}
    options = {theirs: fields[ours] for theirs, ours in _SAME.items()} | {
        "data_name": config.data.name + _DATA_SUFFIX,
        "embed_size": config.embed_dim,
        "no_imgnorm": not config.image.normalise,
        "no_txtnorm": not config.text.normalise,
        "optim": optimizers[config.optimizer.name],
    }
    # What the program reads before anything else, and a model trained here never had.
    defaults = {
        "data_path": config.data.root,
        "img_dim": config.image.feature_dim,
        "max_violation": True,
        "precomp_enc_type": "basic",
        "backbone_source": "detector",
        "backbone_path": "",
    }
    if config.text.kind == "bigru":
        options["word_dim"] = config.text.word_dim
        options["num_layers"] = config.text.layers
        defaults["vocab_path"] = str(Path(config.data.root).parent / "vocab")
        defaults["vocab_size"] = config.text.vocab_size
    if config.image.kind == "grid":
        defaults["precomp_enc_type"] = "backbone"
        options["backbone_source"] = _backbone_source(
            config, released.get("backbone_source")
        )
        options["input_scale_factor"] = config.image.size / _SCALE_1
        rules = {pattern: rest for pattern, *rest in config.optimizer.rules}
        layer4 = rules.get("^image/backbone/layer4/")
        layer3 = rules.get("^image/backbone/layer3/")
        if layer4 and layer3:
            (factor, opens), (_, next_opens) = layer4, layer3
            options["backbone_lr_factor"] = factor
            options["embedding_warmup_epochs"] = opens
            options["backbone_warmup_epochs"] = next_opens - opens
    return defaults | dict(released) | options


def _check_official(config: ConfigDict) -> None:
    """Raises InputError for what the official program cannot build."""
    needed = {
        "image.pool": "gpo",
        "text.pool": "gpo",
        "text.kind": ("bert", "bigru"),
        "optimizer.name": tuple(_OPTIMIZERS.values()),
    }
    if config.image.kind == "grid":
        needed |= {
            "image.backbone.stem": "conv7",
            "image.backbone.block": ("v1", "torchvision"),
            "image.backbone.batch_norm": "frozen",
        }
    if config.text.kind == "bert":
        needed["text.heads"] = max(config.text.hidden // HEAD_SIZE, 1)
    fields = flat_fields(config)
    for field, values in needed.items():
        if fields[field] not in (values if isinstance(values, tuple) else (values,)):
            raise InputError(
                f"config.{field}: the official program has no {fields[field]!r}"
            )


def _backbone_source(config: ConfigDict, released: str | None) -> str:
    """The kind of the config's CNN; several may fit, then the released one if it does.

    The number of blocks does not count: a smaller model is still of its kind.
    """
    cnn = config.image.backbone
    fitting = [
        name
        for name, kind in KINDS.items()
        if (kind.block, kind.pixels) == (cnn.block, config.image.pixels)
    ]
    if not fitting:
        raise InputError(
            f"config.image: the official program has no {cnn.block} blocks with "
            f"{config.image.pixels} pixels"
        )
    exact = [name for name in fitting if KINDS[name].layers == tuple(cnn.layers)]
    return released if released in fitting else (exact or fitting)[0]


def _known(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise InputError(f"{what} is {name!r}, none of {', '.join(table)}")
    return table[name]
