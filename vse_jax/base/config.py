"""Configs as JSON: saved beside every run, read back, compared."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import common
from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically

# A run may be continued with other values of these: they decide how long, how fast and
# where it runs and what it reports, never which numbers a step computes.
FREE_FIELDS = (
    "num_epochs",
    "max_steps",
    "log_every",
    "mesh",
    "remat",
    "data.root",
    "data.format",
    "data.source",
    "data.export_to",
    "data.cache",
    "data.workers",
    "data.num_workers",
    "checkpoint",
    "eval",
)


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes `config` as JSON, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=1, sort_keys=True)
    write_atomically(path, (text + "\n").encode())


def load_config(base: ConfigDict, path: Path) -> ConfigDict:
    """`base` with the values saved in `path`.

    Raises:
        InputError: no such file, not JSON, or a field that `base` lacks.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no saved config; name one with --config") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON config ({error})") from None
    try:
        base.update(_with_tuples(saved))
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: {_one_line(error)}") from None
    return base


def _with_tuples(value):
    """JSON has no tuples: every list of a config stands for one."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).strip("'\"").split())


def flat_fields(config: ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """{"data.root": value, …} of a config or of its JSON form."""
    items = config.to_dict() if isinstance(config, ConfigDict) else config
    flat: dict[str, object] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            flat |= flat_fields(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# Of these, evaluation may use other values than training did.
EVALUATION_FREE_FIELDS = (
    *FREE_FIELDS,
    "seed",
    "batch_size",
    "microbatches",
    "compute_dtype",
    "matmul_precision",
    "data",
    "image.weights",
    "image.drop",
    "image.crop_min",
    "image.flip",
    "text.weights",
    "text.vocab",
    "text.vocab_threshold",
    "text.augment",
    "text.dropout",
    "text.cache_features",
    "loss",
    "optimizer",
)


def check_same_run(
    config: ConfigDict, path: Path, free_fields: tuple[str, ...] = FREE_FIELDS
) -> None:
    """Raises InputError when `path` holds the config of another run.

    The message names every differing field, but for `free_fields`, with both values. A
    field that was not there yet when `path` was written had its default.
    """
    saved = flat_fields(load_config(common.base(), path))
    now = flat_fields(config)
    differing = [
        f"{field} ({saved[field]!r} there, {now[field]!r} here)"
        for field in sorted(saved)
        if saved[field] != now[field]
        and not any(
            field == free or field.startswith(free + ".") for free in free_fields
        )
    ]
    if differing:
        raise InputError(
            f"{path.parent}: holds another config's checkpoint; differing fields: "
            + ", ".join(differing)
        )
