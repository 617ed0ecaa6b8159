"""What may be done with a config: load, save, compare.

What its fields are, with their units and published values: configs/common.py; which
values are possible: possible.py.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import check_inside, write_atomically
from vse_jax.base.registry import check_code, is_path

Config = ConfigDict
Fields = Mapping[str, Any]  # {"data.root": value, …}

# A shared model: what its config.json says of itself, and the files that are read. They
# may come from anybody, so no others are, and nothing of the folder is executed.
_SHARED = {"model_type": "vse_jax", "format_version": 1}
MODEL_FILE = "model.safetensors"
SHARED_FILES = (
    "config.json",
    MODEL_FILE,
    "vocab.txt",
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    # Of a published SigLIP, whose weights may be several files.
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
)
WEIGHT_PARTS = "model-*-of-*.safetensors"

# ---- Who may change what -------------------------------------------------------------

# Fields that name files or folders; `eval.ensemble` several, with commas between them.
PATHS = (
    "data.root",
    "data.source",
    "data.export_to",
    "data.cache",
    "image.weights",
    "text.weights",
    "text.vocab",
    "eval.ensemble",
    "eval.plausible_matches",
    "search.pictures",
    "search.index",
    "search.like",
)

# Where a host keeps its files, and its cores: they may differ between the processes of
# a run (what is read is compared), and between a run and its continuation.
HOSTS_OWN = (*PATHS, "data.workers", "data.num_workers", "data.buffer_mb")

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
    "data.equal_captions",
    "checkpoint",
    "eval",
    "search",
    "hub",
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

# Fields that one kind of tower reads alone; a tower of one's own may read any.
_READ_BY = {
    "image.backbone": "grid",
    "image.vit": "vit",
    "image.feature_dim": "region",
    "image.max_regions": "region",
    "text.word_dim": "bigru",
}

# A shared model's config is without these: they are of the machine and the person that
# trained it (paths, an access token), or say nothing about the model.
NOT_SHARED = (*HOSTS_OWN, "debug", "profile", "hub", "search")

# Fields that runs of earlier versions lack, with what those versions did.
ADDED = {
    "task": "retrieval",
    "microbatches": 1,
    "remat": False,
    "debug": False,
    "profile": None,
    "data.buffer_mb": 4096,
    "loss.name": "triplet",
    "loss.mask_same_image": False,
    "data.dev_captions": 5000,
    "data.equal_captions": True,
    "data.export_to": None,
    "data.cache": None,
    "image.input": "auto",
    "image.pool_k": 5,
    "image.resample": "plain",
    "image.vit.patch": 16,
    "image.vit.hidden": 768,
    "image.vit.layers": 12,
    "image.vit.heads": 12,
    "image.vit.ffn": 3072,
    "text.pad_id": 0,
    "text.pool_k": 5,
}

# ---- Load, save, compare -------------------------------------------------------------


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes `config` as JSON, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=1, sort_keys=True)
    write_atomically(path, (text + "\n").encode())


def change_paths(config: ConfigDict, change: Callable[[str], str]) -> None:
    """Replaces each path of this machine in the fields of `PATHS` by change(path).

    A URL (gs://…) and the folder of an installed package (package:NAME/…) stay.
    """
    fields = flat_fields(config)
    changed = {}
    for field in PATHS:
        if named := fields.get(field):
            paths = named.split(",") if field == "eval.ensemble" else [named]
            changed[field] = ",".join(
                path
                if "://" in path or path.startswith("package:")
                else change(path.strip())
                for path in paths
            )
    config.update_from_flattened_dict(changed)


def save_shared_config(config: ConfigDict, path: Path) -> None:
    """As `save_config`, for a folder that others get (`--mode=push`)."""
    fields = {f: v for f, v in flat_fields(config).items() if not is_in(f, NOT_SHARED)}
    text = json.dumps(_SHARED | nested(fields), indent=1, sort_keys=True)
    write_atomically(path, f"{text}\n".encode())


def load_config(
    path: Path, base: ConfigDict | None = None, *, trust_code: bool = False
) -> ConfigDict:
    """The config that a run saved in `path`, or that came with a shared model.

    A field that was not there yet when it was written gets the value of `ADDED`. A
    vocabulary beside `path` is the model's, wherever its run once found it.

    Args:
        path: JSON file.
        base: gives the fields their types, so that they can be set on the command line
            (configs/common.py's); unknown fields are then an error.
        trust_code: a shared model's own classes may be imported.

    Raises:
        InputError: no such file, not JSON, a field that `base` lacks, or a shared model
            without its vocabulary, with files elsewhere or with classes of its own.
    """
    flat, shared = _saved_fields(path)
    folder, kind = path.parent, flat.get("text.kind")
    own = own_vocabulary(folder, kind)
    if not shared and (folder / MODEL_FILE).is_file():
        # Without this, a shared model could pass for a run, whose classes are trusted.
        raise InputError(f"{path}: no model_type, which a shared model has")
    if shared:
        check_inside(folder, SHARED_FILES)
        check_code(flat, folder, trust_code)
        if own is None:
            names = " and no ".join(vocabulary_names(kind))
            raise InputError(f"{folder}: no {names}, the vocabulary of this model")
    if own is not None:
        flat["text.vocab"] = str(own)
    if base is None:
        return ConfigDict(nested(flat))
    try:
        base.update(nested(flat))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {plain(error)}") from error
    return base


def _saved_fields(path: Path) -> tuple[dict[str, Any], bool]:
    """({"data.root": value, …} of a JSON config, whether it is a shared model's)."""
    try:
        saved = _with_tuples(json.loads(path.read_text(encoding="utf-8")))
        about = {name: saved.pop(name, None) for name in _SHARED}
        flat = ADDED | flat_fields(saved)
        if flat.get("search.exclude") == ():  # earlier runs': it says nothing
            flat["search.exclude"] = None
    except FileNotFoundError:
        raise InputError(f"{path}: no saved config; name one with --config") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON config ({error})") from error
    if about["model_type"] is None:
        return flat, False
    for name, value in _SHARED.items():
        if about[name] != value:
            raise InputError(f"{path}: {name} is {about[name]!r}, not {value!r}")
    return {f: v for f, v in flat.items() if not is_in(f, NOT_SHARED)}, True


def own_vocabulary(folder: Path, kind: Any) -> Path | None:
    """The copy of its vocabulary in a model's folder; `kind`: config.text.kind."""
    files = (folder / name for name in vocabulary_names(kind))
    return next((file for file in files if file.is_file()), None)


def vocabulary_names(kind: Any) -> tuple[str, ...]:
    """What that copy may be called, the first that is there."""
    other = ("tokenizer.json", "vocab.txt")
    return {"bigru": ("vocab.json",), "siglip": ("tokenizer.json",)}.get(kind, other)


def _with_tuples(value):
    """JSON has no tuples: every list of a config stands for one."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def nested(flat: Fields) -> dict[str, Any]:
    """Inverse of `flat_fields`, as dicts."""
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


def takes_regions(image: ConfigDict) -> bool:
    """Whether the image tower of config.image takes features, not pixels."""
    if image.input == "auto":
        return image.kind == "region"
    return image.input == "regions"


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields that have to be equal in all processes of a run."""
    return {f: v for f, v in flat_fields(config).items() if not is_in(f, HOSTS_OWN)}


def vector_fields(config: ConfigDict) -> Fields:
    """The fields that decide, with a model's weights and vocabulary, its vectors.

    Every field counts, a new one too, except those that evaluation may change (they
    change vectors by rounding at most) and those of towers that the model lacks. One
    with the value of `ADDED` is left out: configs from before it mean the same.
    """
    kinds = (config.image.kind, config.text.kind)
    unread = tuple(
        field
        for field, kind in _READ_BY.items()
        if kind not in kinds and not is_path(config[field.partition(".")[0]].kind)
    )
    return {
        field: value
        for field, value in flat_fields(config).items()
        if (field == "data.max_tokens" or not is_in(field, EVALUATION_FREE))
        and not is_in(field, unread)
        and not (field in ADDED and ADDED[field] == value)
    }


def check_same_run(
    config: ConfigDict, path: Path, free_fields: tuple[str, ...] = RESUME_FREE
) -> None:
    """Raises InputError when `path` holds the config of another run.

    The message names every differing field, but for `free_fields`, with both values.
    """
    saved, _ = _saved_fields(path)
    now = flat_fields(config)
    differing = [
        f"{field} ({saved.get(field)!r} there, {now.get(field)!r} here)"
        for field in sorted(saved.keys() | now.keys())
        if saved.get(field) != now.get(field) and not is_in(field, free_fields)
    ]
    if differing:
        raise InputError(
            f"{path.parent}: holds another config's checkpoint; differing fields: "
            + ", ".join(differing)
        )


def is_in(field: str, names: tuple[str, ...]) -> bool:
    """Whether `names` hold a field, or a group that it is in."""
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
