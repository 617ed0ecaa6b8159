"""What may be done with a config: load, save, compare, check.

What its fields are, with their units and published values: configs/common.py.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically

Fields = Mapping[str, Any]  # {"data.root": value, …}

# ---- Who may change what -------------------------------------------------------------

# Where a host keeps its files, and its cores: they may differ between the processes of
# a run (what is read is compared), and between a run and its continuation.
HOSTS_OWN = (
    "data.root",
    "data.source",
    "data.export_to",
    "data.cache",
    "data.workers",
    "data.num_workers",
    "data.buffer_mb",
    "image.weights",
    "text.weights",
    "text.vocab",
    "eval.ensemble",
    "eval.plausible_matches",
)

# A run may be continued with other values of these: they decide how long, how fast and
# where it runs and what it reports; which numbers a step computes, only by rounding.
RESUME_FREE = (
    *HOSTS_OWN,
    "num_epochs",
    "max_steps",
    "log_every",
    "mesh",
    "remat",
    "matmul_precision",
    "debug",
    "profile",
    "data.format",
    "checkpoint",
    "eval",
)

# Of these, too, evaluation may use other values than training did.
EVALUATION_FREE = (
    *RESUME_FREE,
    "seed",
    "batch_size",
    "microbatches",
    "compute_dtype",
    "data",
    "image.drop",
    "image.crop_min",
    "image.flip",
    "text.vocab_threshold",
    "text.augment",
    "text.dropout",
    "text.cache_features",
    "loss",
    "optimizer",
)

# Fields that runs of earlier versions lack, with what those versions did.
ADDED = {
    "task": "retrieval",
    "microbatches": 1,
    "remat": False,
    "debug": False,
    "profile": None,
    "data.buffer_mb": 4096,
    "data.dev_captions": 5000,
    "data.export_to": None,
    "data.cache": None,
    "image.pool_k": 5,
    "text.pool_k": 5,
}

# ---- What is possible ----------------------------------------------------------------

POOLS = ("gpo", "avg", "max", "kmax", "gem", "fspool", "cls", "seq2seq", "selfattn")
CHOICES: dict[str, tuple] = {
    "task": ("retrieval", "gpo_synthetic", "pooling_study"),
    "compute_dtype": ("float32", "bfloat16"),
    "matmul_precision": ("auto", "highest", "high", "default"),
    "data.format": ("folder", "array_record", "tfds"),
    "data.on_bad_image": ("error", "skip"),
    "data.workers": ("auto", "threads", "processes"),
    "image.kind": ("grid", "region"),
    "image.pool": POOLS,
    "image.pixels": ("detector", "imagenet"),
    "image.backbone.block": ("v1", "torchvision", "basic"),
    "image.backbone.stem": ("conv7", "patch"),
    "image.backbone.batch_norm": ("frozen", "train"),
    "text.kind": ("bert", "bigru"),
    "text.pool": POOLS,
    "optimizer.name": ("adamw", "sgd"),
}

LEAST: dict[str, float] = {
    "seed": 0,
    "batch_size": 1,
    "num_epochs": 1,
    "max_steps": 1,
    "log_every": 1,
    "microbatches": 1,
    "embed_dim": 1,
    "data.render_size": 1,
    "data.dev_captions": 1,
    "data.num_workers": 0,
    "data.buffer_mb": 1,
    "data.max_tokens": 3,
    "image.pool_k": 1,
    "image.size": 1,
    "image.feature_dim": 1,
    "image.max_regions": 1,
    "image.backbone.patch": 1,
    "image.backbone.width": 1,
    "image.backbone.groups": 1,
    "image.backbone.group_width": 1,
    "text.pool_k": 1,
    "text.vocab_size": 0,
    "text.vocab_threshold": 1,
    "text.word_dim": 1,
    "text.hidden": 1,
    "text.layers": 0,
    "text.heads": 1,
    "text.ffn": 1,
    "text.max_positions": 3,
    "loss.margin": 0,
    "loss.vse_mean_warmup_epochs": 0,
    "loss.ramp_epoch": -1,
    "optimizer.learning_rate": 0,
    "optimizer.lr_update": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip": 0,
    "checkpoint.every_steps": 1,
    "eval.batch_size": 1,
}

SHARES = ("image.flip", "image.drop", "text.dropout", "text.augment")  # 0 … 1


def _mesh(f: Fields) -> str | None:
    shape = (f["mesh.data"], f["mesh.fsdp"])
    if any(n == 0 or n < -1 for n in shape) or shape == (-1, -1):
        return "every axis needs a positive number of devices, one may be -1"
    return None


def _crop(f: Fields) -> str | None:
    return None if 0 < f["image.crop_min"] <= 1 else "not above 0 and at most 1"


def _whole_numbers(field: str) -> Callable[[Fields], str | None]:
    def check(f: Fields) -> str | None:
        value = f[field]
        fine = value and all(isinstance(n, int) and n >= 0 for n in value)
        return None if fine and max(value) > 0 else "needs positive whole numbers"

    return check


def _microbatches(f: Fields) -> str | None:
    if f["batch_size"] % max(f["microbatches"], 1):
        return f"a batch of {f['batch_size']} does not divide by it"
    return None


def _heads(f: Fields) -> str | None:
    if f["text.kind"] == "bert" and f["text.hidden"] % max(f["text.heads"], 1):
        return f"does not divide text.hidden = {f['text.hidden']}"
    return None


def _layers(f: Fields) -> str | None:
    without = f["text.kind"] == "bigru" and not f["text.layers"]
    if without and f["text.pool"] != "seq2seq":
        return "0 needs text.pool = 'seq2seq'"
    return None


def _cached(f: Fields) -> str | None:
    if not f["text.cache_features"]:
        return None
    if f["text.kind"] != "bert":
        return "a BiGRU has no token features to store"
    if f["text.augment"]:
        return "needs text.augment = 0"
    return None


def _rules(f: Fields) -> str | None:
    for rule in f["optimizer.rules"]:
        try:
            pattern, factor, opens = rule
            re.compile(pattern)
            fine = factor >= 0 and int(opens) == opens
        except (TypeError, ValueError, re.error) as error:
            return f"{rule!r} is not (regex, learning-rate factor, epoch): {error}"
        if not fine:
            return f"{rule!r} is not (regex, learning-rate factor ≥ 0, whole epoch)"
    return None


def _decaying(f: Fields) -> str | None:
    try:
        re.compile(f["optimizer.weight_decay_on"])
    except re.error as error:
        return f"not a regular expression ({error})"
    return None


def _profile(f: Fields) -> str | None:
    if f["profile"] is None or re.fullmatch(r"\d+:\d+", f["profile"]):
        first, _, last = (f["profile"] or "1:1").partition(":")
        if 1 <= int(first) <= int(last):
            return None
    return f"{f['profile']!r} is not FIRST:LAST, steps from 1"


def _study_steps(f: Fields) -> str | None:
    if f["task"] == "gpo_synthetic" and f["max_steps"] is None:
        return "needed by task 'gpo_synthetic'"
    return None


# Field → what is wrong with it, given all fields; None: nothing.
CONDITIONS: tuple[tuple[str, Callable[[Fields], str | None]], ...] = (
    ("mesh", _mesh),
    ("max_steps", _study_steps),
    ("microbatches", _microbatches),
    ("profile", _profile),
    ("data.token_buckets", _whole_numbers("data.token_buckets")),
    ("image.crop_min", _crop),
    ("image.backbone.layers", _whole_numbers("image.backbone.layers")),
    ("text.heads", _heads),
    ("text.layers", _layers),
    ("text.cache_features", _cached),
    ("optimizer.rules", _rules),
    ("optimizer.weight_decay_on", _decaying),
)


def check_config(config: ConfigDict) -> None:
    """Raises InputError that names every field with an impossible value."""
    if problems := config_problems(config):
        raise InputError("; ".join(problems))


def config_problems(config: ConfigDict) -> list[str]:
    """One text for every field with an impossible value, naming it.

    Fields whose own value is fine are then checked against the others.
    """
    fields = flat_fields(config)
    wrong = _own_problems(fields)
    for field, problem in CONDITIONS:
        if not any(_is_in(name, (field,)) for name in wrong):
            try:
                found = problem(fields)
            except (TypeError, ValueError) as error:
                found = str(error)
            if found:
                wrong[field] = f"config.{field}: {found}"
    return list(wrong.values())


def _own_problems(fields: Fields) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for field, choices in CHOICES.items():
        if fields[field] not in choices:
            listed = ", ".join(map(str, choices))
            wrong[field] = f"config.{field}: {fields[field]!r} is none of {listed}"
    for field, least in LEAST.items():
        value = fields[field]
        if value is not None and not value >= least:  # NaN is below everything
            wrong[field] = f"config.{field}: {value} is less than {least}"
    for field in SHARES:
        if not 0 <= fields[field] <= 1:
            wrong[field] = f"config.{field}: {fields[field]} is not between 0 and 1"
    return wrong


# ---- Load, save, compare -------------------------------------------------------------


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes `config` as JSON, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=1, sort_keys=True)
    write_atomically(path, (text + "\n").encode())


def load_config(path: Path, base: ConfigDict | None = None) -> ConfigDict:
    """The config that a run saved in `path`.

    A field that was not there yet when it was written gets the value of `ADDED`.

    Args:
        path: JSON file.
        base: gives the fields their types, so that they can be set on the command line
            (configs/common.py's); unknown fields are then an error.

    Raises:
        InputError: no such file, not JSON, or a field that `base` lacks.
    """
    try:
        saved = _with_tuples(json.loads(path.read_text(encoding="utf-8")))
        flat = ADDED | flat_fields(saved)
    except FileNotFoundError:
        raise InputError(f"{path}: no saved config; name one with --config") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a JSON config ({error})") from error
    if base is None:
        return ConfigDict(_nested(flat))
    try:
        base.update(_nested(flat))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {plain(error)}") from error
    return base


def _with_tuples(value):
    """JSON has no tuples: every list of a config stands for one."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _nested(flat: Fields) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for field, value in flat.items():
        *parents, name = field.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flat_fields(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"data.root": value, …} of a config or of its JSON form."""
    items = config.to_dict() if isinstance(config, ConfigDict) else config
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            flat |= flat_fields(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields that have to be equal in all processes of a run."""
    return {f: v for f, v in flat_fields(config).items() if not _is_in(f, HOSTS_OWN)}


def check_same_run(
    config: ConfigDict, path: Path, free_fields: tuple[str, ...] = RESUME_FREE
) -> None:
    """Raises InputError when `path` holds the config of another run.

    The message names every differing field, but for `free_fields`, with both values.
    """
    saved = flat_fields(load_config(path))
    now = flat_fields(config)
    differing = [
        f"{field} ({saved.get(field)!r} there, {now.get(field)!r} here)"
        for field in sorted(saved.keys() | now.keys())
        if saved.get(field) != now.get(field) and not _is_in(field, free_fields)
    ]
    if differing:
        raise InputError(
            f"{path.parent}: holds another config's checkpoint; differing fields: "
            + ", ".join(differing)
        )


def _is_in(field: str, names: tuple[str, ...]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def plain(error: BaseException) -> str:
    """An exception's text on one line; of a ConfigDict's, only what a user needs."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    unknown = re.match(r'Key "(\w+)" does not exist', text)
    if unknown:
        meant = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {meant[1]!r}?" if meant else ""
        return f"no field {unknown[1]!r} in the config{hint}"
    return " ".join(text.split()) or type(error).__name__
