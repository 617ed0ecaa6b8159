"""What fine-tuning gains on a run's data, and forgets elsewhere: W/finetuning.json.

    {"splits": {"dev": what it is, "retention": …},
     "models": {"start": {"dev": metrics, "retention": metrics}, "fine-tuned": {…}}}

The metrics are those of `evaluation.retrieval_metrics`. In the folder that
--mode=interpolate writes, the models are mixtures, and "chosen" names the one there.
"""

import json
from dataclasses import replace
from typing import Any

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_object, write_atomically
from vse_jax.config import Config, with_fields
from vse_jax.data.dataset import Split, read_split

REPORT = "finetuning.json"
Scores = dict[str, dict[str, Any]]  # split → metrics


def retention_splits(config: Config) -> list[Split]:
    """The split that config.eval.retention names, called 'retention'; or none.

    Raises:
        InputError: as `read_splits`.
    """
    about, name = config.eval.retention, _retention_name(config)
    if name is None:
        return []
    fields = {
        "data.root": about.root or config.data.root,
        "data.name": about.name or config.data.name,
        "data.dev_captions": None,
    }
    split = read_split(with_fields(config, fields), name)
    return [replace(split, name="retention")]


def _retention_name(config: Config) -> str | None:
    """The name of the split that config.eval.retention means; None: there is none."""
    about = config.eval.retention
    return about.split or ("test" if about.root or about.name else None)


def make_report(
    config: Config, models: dict[str, Scores], chosen: str | None = None
) -> dict[str, Any]:
    """What finetuning.json holds; `models`: the scores of each, by its name."""
    about, data = config.eval.retention, config.data
    described = {
        data.dev_split: f"{data.name} {data.dev_split}",
        "retention": f"{about.name or data.name} {_retention_name(config)}",
    }
    # What was not scored before the first step is not compared.
    found = [split for split in described if all(split in x for x in models.values())]
    splits = {split: described[split] for split in found}
    return {"splits": splits, "models": models, "chosen": chosen}


def write_report(folder: AnyPath, report: dict[str, Any]) -> None:
    """Writes finetuning.json to a folder, and prints its table.

    One line says where the fine-tuned model is worse than its start, and what to try.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / REPORT, text.encode())
    rows = report_rows(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(
                cell.rjust(width) for cell, width in zip(row, widths, strict=True)
            )
        )
    start, tuned = (report["models"].get(x, {}) for x in ("start", "fine-tuned"))
    worse = [
        f"{split} {start[split]['rsum']:.1f} → {metrics['rsum']:.1f}"
        f" (−{start[split]['rsum'] - metrics['rsum']:.1f})"
        for split, metrics in tuned.items()
        if metrics["rsum"] < start[split]["rsum"]
    ]
    if worse:
        logging.warning(
            "worse than what it started from, in rsum: %s; try --mode=interpolate, "
            "which mixes the two, or a lower config.optimizer.learning_rate",
            ", ".join(worse),
        )


def read_report(folder: AnyPath) -> dict[str, Any] | None:
    """What `write_report` wrote to a folder; None: nothing there.

    Raises:
        InputError: it is damaged.
    """
    file = folder / REPORT
    if not file.is_file():
        return None
    report = read_object(file)
    try:
        report_rows(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: not what was written there ({error!r})") from None
    return report


def report_rows(report: dict[str, Any]) -> list[list[str]]:
    """A table of a report: its head, and a row for each model."""
    columns = {"i2t": "image to caption R@1", "t2i": "caption to image R@1"}
    head = [""]
    for split in report["splits"]:
        head += [f"{split}: {columns['i2t']}", columns["t2i"], "rsum"]
    rows = [head]
    for model, scores in report["models"].items():
        name = f"**{model}**" if model == report["chosen"] else model
        row = [name]
        for split in report["splits"]:
            metrics = scores[split]
            values = [*(metrics[way]["r1"] for way in columns), metrics["rsum"]]
            row += [f"{value:.1f}" for value in values]
        rows.append(row)
    return rows
