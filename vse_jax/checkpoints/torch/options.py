"""The official program's options (an argparse.Namespace) ⇄ our config."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch.backbones import KINDS, WSL_LICENSE
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
# Options that are fields.
_FIELDS = {
    "num_epochs": "num_epochs",
    "batch_size": "batch_size",
    "learning_rate": "optimizer.learning_rate",
    "lr_update": "optimizer.lr_update",
    "grad_clip": "optimizer.clip",
    "margin": "loss.margin",
    "vse_mean_warmup_epochs": "loss.vse_mean_warmup_epochs",
}


def _recipe(fields: Fields) -> dict[str, Any]:
    """The options that say how a model with these fields is trained."""
    names = {field: option for option, field in _OPTIMIZERS.items()}
    return {option: fields[field] for option, field in _FIELDS.items()} | {
        "no_imgnorm": not fields["image.normalise"],
        "no_txtnorm": not fields["text.normalise"],
        "data_name": fields["data.name"] + _DATA_SUFFIX,
        "optim": names[fields["optimizer.name"]],
    }


def config_of(options: Mapping[str, Any], sizes: Fields, source: str) -> Config:
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
    published = _recipe(flat_fields(Config()))

    def given(
        name: str,
        default: Any = None,
        convert: Callable | Mapping = lambda value: value,
    ) -> Any:
        default = published[name] if default is None else default
        value = options.get(name, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        try:
            if type(value) is not type(default):
                raise ValueError(f"not {type(default).__name__}")
            if not isinstance(convert, Mapping):
                return convert(value)
            if value not in convert:
                raise ValueError(f"none of {', '.join(convert)}")
            return convert[value]
        except ValueError as error:
            what = f"{source}: option {name} is {value!r}"
            raise InputError(f"{what}, {error}") from None

    fields = dict(sizes) | {field: given(name) for name, field in _FIELDS.items()}
    fields["image.normalise"] = not given("no_imgnorm")
    fields["text.normalise"] = not given("no_txtnorm")
    fields["data.name"] = data = given("data_name").removesuffix(_DATA_SUFFIX)
    fields["optimizer.name"] = given("optim", convert=_OPTIMIZERS)
    sgd = fields["optimizer.name"] == "sgd"
    fields["data.root"] = f"data/{data}"
    fields["data.dev_captions"] = 5000  # as the program validates
    fields["data.captions_per_image"] = 5  # as it reads every data set
    fields["eval.split"] = "testall" if data == "coco" else "test"
    if sizes["image.kind"] == "grid":
        scale = Config().image.size / _SCALE_1
        # Without the option only the groups tell ResNet from ResNeXt.
        kind = "wsl" if fields["image.backbone.groups"] > 1 else "detector"
        cnn = given("backbone_source", kind, KINDS)
        if cnn is KINDS["wsl"]:
            fields["hub.license"] = WSL_LICENSE
        warmup = given("embedding_warmup_epochs", 1)
        fields |= {
            "image.size": given(
                "input_scale_factor", scale, lambda x: int(_SCALE_1 * x)
            ),
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
    image, text = config.image, config.text
    grid, bigru = image.kind == "grid", text.kind == "bigru"
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
    if text.kind == "bert":
        needed["text.heads"] = (max(text.hidden // HEAD_SIZE, 1),)
    for field, values in needed.items():
        if fields[field] not in values:
            raise InputError(
                f"config.{field}: the official program has no {fields[field]!r}"
            )

    # What the program reads before anything else, and a model trained here never had.
    defaults = {
        "data_path": config.data.root,
        "img_dim": image.feature_dim,
        "max_violation": True,
        "precomp_enc_type": "backbone" if grid else "basic",
        "backbone_source": "detector",
        "backbone_path": "",
    }
    options = _recipe(fields) | {"embed_size": config.embed_dim}
    if bigru:
        defaults["vocab_path"] = str(Path(config.data.root).parent / "vocab")
        defaults["vocab_size"] = text.vocab_size
        options |= {"word_dim": text.word_dim, "num_layers": text.layers}
    if grid:
        options["input_scale_factor"] = image.size / _SCALE_1
        # Several kinds may fit, then the released one if it does. The number of blocks
        # does not count: a smaller model is still of its kind.
        looks = (image.backbone.block, image.pixels)
        fitting = [name for name, k in KINDS.items() if (k.block, k.pixels) == looks]
        if not fitting:
            raise InputError(
                f"config.image: the official program has no {looks[0]} blocks with "
                f"{looks[1]} pixels"
            )
        layers = tuple(image.backbone.layers)
        exact = [name for name in fitting if KINDS[name].layers == layers]
        known = released.get("backbone_source")
        options["backbone_source"] = (
            known if known in fitting else (exact or fitting)[0]
        )
        rules = {pattern: rest for pattern, *rest in config.optimizer.rules}
        layer4 = rules.get("^image/backbone/layer4/")
        layer3 = rules.get("^image/backbone/layer3/")
        if layer4 and layer3:  # else no options give the CNN its rules
            (factor, epoch), (_, next_epoch) = layer4, layer3
            options["backbone_lr_factor"] = factor
            options["embedding_warmup_epochs"] = epoch
            options["backbone_warmup_epochs"] = next_epoch - epoch
    return defaults | dict(released) | options
