"""What is possible in a config: the values of each field, and how fields go together.

What the fields mean, with their units: configs/common.py.
"""

import datetime
import math
import re
from collections.abc import Callable
from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.base.registry import OPEN, is_path
from vse_jax.config import NOT_SHARED, Config, Fields, flat_fields, is_in

LOSSES = ("triplet", "infonce", "sigmoid")
POOLS = (
    "gpo",
    "avg",
    "max",
    "kmax",
    "gem",
    "fspool",
    "cls",
    "last",
    "seq2seq",
    "selfattn",
    "map",
)
CHOICES: dict[str, tuple] = {
    "task": ("retrieval", "gpo_synthetic"),
    "compute_dtype": ("float32", "bfloat16"),
    "matmul_precision": ("auto", "highest", "high", "default"),
    "data.format": ("folder", "tfds"),
    "data.on_bad_image": ("error", "skip"),
    "data.workers": ("auto", "threads", "processes"),
    "image.kind": ("grid", "region", "vit"),
    "image.input": ("auto", "pixels", "regions"),
    "image.pool": POOLS,
    "image.pixels": ("detector", "imagenet", "siglip"),
    "image.resample": ("plain", "bilinear", "bicubic"),
    "image.backbone.block": ("v1", "torchvision", "basic"),
    "image.backbone.stem": ("conv7", "patch"),
    "image.backbone.batch_norm": ("frozen", "train"),
    "text.kind": ("bert", "bigru", "siglip"),
    "text.pool": POOLS,
    "loss.name": LOSSES,
    "optimizer.name": ("adamw", "sgd"),
    "search.format": ("table", "json", "paths"),
    "search.engine": ("exact", "approximate", "qdrant"),
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
    "image.vit.patch": 1,
    "image.vit.hidden": 1,
    "image.vit.layers": 0,
    "image.vit.heads": 1,
    "image.vit.ffn": 1,
    "text.pool_k": 1,
    "text.vocab_size": 0,
    "text.vocab_threshold": 1,
    "text.word_dim": 1,
    "text.hidden": 1,
    "text.layers": 0,
    "text.heads": 1,
    "text.ffn": 1,
    "text.max_positions": 3,
    "text.pad_id": 0,
    "loss.margin": 0,
    "loss.vse_mean_warmup_epochs": 0,
    "loss.ramp_epoch": -1,
    "optimizer.learning_rate": 0,
    "optimizer.lr_update": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip": 0,
    "checkpoint.every_steps": 1,
    "eval.batch_size": 1,
    "search.top": 1,
    "search.min_score": -1,
    "search.max_pixels": 1,
    "search.port": 0,
    "search.max_upload_mb": 1,
    "search.queue": 1,
    "search.timeout_s": 0.1,
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
    transformer = f["text.kind"] in ("bert", "siglip")
    if transformer and f["text.hidden"] % max(f["text.heads"], 1):
        return f"does not divide text.hidden = {f['text.hidden']}"
    return None


def _vit_heads(f: Fields) -> str | None:
    if f["image.kind"] == "vit" and f["image.vit.hidden"] % f["image.vit.heads"]:
        return f"does not divide image.vit.hidden = {f['image.vit.hidden']}"
    return None


def _patch(f: Fields) -> str | None:
    if f["image.kind"] == "vit" and f["image.vit.patch"] > f["image.size"]:
        return f"larger than image.size = {f['image.size']}"
    return None


def _map(f: Fields) -> str | None:
    head = f["image.kind"] == "vit" and f["image.pool"] == "map"
    if head and f["image.vit.hidden"] != f["embed_dim"]:
        return (
            f"'map' gives vectors of image.vit.hidden = {f['image.vit.hidden']}, not "
            f"of embed_dim = {f['embed_dim']}"
        )
    return None


def _layers(f: Fields) -> str | None:
    without = f["text.kind"] == "bigru" and not f["text.layers"]
    if without and f["text.pool"] != "seq2seq":
        return "0 needs text.pool = 'seq2seq'"
    return None


def _cached(f: Fields) -> str | None:
    if not f["text.cache_features"]:
        return None
    if f["text.kind"] not in ("bert", "siglip"):
        name = "BiGRU" if f["text.kind"] == "bigru" else f"tower {f['text.kind']}"
        return f"a {name} has no token features to store"
    if f["text.kind"] == "siglip" and f["text.pool"] == "last":
        return "text.pool = 'last' reads the padding, which is not stored"
    if f["text.augment"]:
        return "needs text.augment = 0"
    return None


def _rules(f: Fields) -> str | None:
    for rule in f["optimizer.rules"]:
        try:
            pattern, factor, opens = rule
            re.compile(pattern)
            fine = 0 <= factor < math.inf and int(opens) == opens
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


def is_day(text: str) -> bool:
    """Whether a text is a day of the form YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _day(field: str) -> Callable[[Fields], str | None]:
    def check(f: Fields) -> str | None:
        if f[field] is None or is_day(f[field]):
            return None
        return f"{f[field]!r} is no day, such as 2024-12-31"

    return check


def _patterns(f: Fields) -> str | None:
    given = f["search.exclude"]
    if given is None or all(isinstance(pattern, str) for pattern in given):
        return None
    return f"{given!r} are no patterns, such as ('private/', '*.gif')"


def _token(f: Fields) -> str | None:
    here = f["search.host"] in ("127.0.0.1", "::1", "localhost")
    if not here and not f["search.token"]:
        return f"needed to serve beyond this machine (search.host={f['search.host']})"
    return None


def _hosts(f: Fields) -> str | None:
    for name in f["search.hosts"]:
        if not re.fullmatch(r"(?i)(\*\.)?[a-z0-9._-]+|[0-9a-f:.]+", str(name)):
            return f"{name!r} is no name of a host, such as 'photos.example.com'"
    return None


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
    ("image.vit.heads", _vit_heads),
    ("image.vit.patch", _patch),
    ("image.pool", _map),
    ("text.heads", _heads),
    ("text.layers", _layers),
    ("text.cache_features", _cached),
    ("optimizer.rules", _rules),
    ("optimizer.weight_decay_on", _decaying),
    ("search.exclude", _patterns),
    ("search.after", _day("search.after")),
    ("search.before", _day("search.before")),
    ("search.token", _token),
    ("search.hosts", _hosts),
)


# A model cannot be built or used without these, the ones with rules above among them.
_NEEDED = {
    *CHOICES,
    *LEAST,
    *SHARES,
    "mesh.data",
    "mesh.fsdp",
    "data.name",
    "data.token_buckets",
    "image.backbone.layers",
    "image.normalise",
    "text.normalise",
}


def check_shared(config: Config, file: Path) -> None:
    """Checks a config that may come from anybody, without those fields that none has.

    Raises:
        InputError: names `file` and every field that is missing or impossible.
    """
    fields = flat_fields(config)
    missing = sorted(
        field
        for field in _NEEDED
        if field not in fields and not is_in(field, NOT_SHARED)
    )
    if missing:
        raise InputError(f"{file}: no field {', '.join(missing)}")
    if problems := config_problems(config):
        raise InputError(f"{file}: {'; '.join(problems)}")


def check_config(config: Config) -> None:
    """Raises InputError that names every field with an impossible value."""
    if problems := config_problems(config):
        raise InputError("; ".join(problems))


def config_problems(config: Config) -> list[str]:
    """One text for every field with an impossible value, naming it.

    Fields whose own value is fine are then checked against the others.
    """
    fields = flat_fields(config)
    wrong = value_problems(fields)
    for field, problem in CONDITIONS:
        absent = is_in(field, NOT_SHARED) and field not in fields
        if not absent and not any(is_in(name, (field,)) for name in wrong):
            try:
                found = problem(fields)
            except (TypeError, ValueError) as error:
                found = str(error)
            if found:
                wrong[field] = f"config.{field}: {found}"
    return list(wrong.values())


def value_problems(fields: Fields) -> dict[str, str]:
    """Of each value by itself, {field: text that names it}; fields may be absent."""
    wrong: dict[str, str] = {}
    for field, choices in CHOICES.items():
        if field not in fields:
            continue
        value = fields[field]
        if value in choices or (field in OPEN and is_path(value)):
            continue
        listed = ", ".join(map(str, choices))
        own = ", nor of the form package.module:Class" if field in OPEN else ""
        wrong[field] = f"config.{field}: {value!r} is none of {listed}{own}"
    for field, least in LEAST.items():
        value = fields.get(field)
        if isinstance(value, str | tuple | bool):
            wrong[field] = f"config.{field}: {value!r} is no number"
        elif value is not None and not value >= least:  # NaN is below everything
            wrong[field] = f"config.{field}: {value} is less than {least}"
        elif value == math.inf:
            wrong[field] = f"config.{field}: {value} is not finite"
    for field in SHARES:
        value = fields.get(field, 0)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            wrong[field] = f"config.{field}: {value} is not between 0 and 1"
    return wrong
