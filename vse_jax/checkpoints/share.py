"""A run's best model as a folder that others can load, W/share/, and its model card.

A card that its owner has changed is kept: its last line says what was written.
"""

import hashlib
import math
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from vse_jax import __version__
from vse_jax.base.files import (
    AnyPath,
    modified,
    read_bytes,
    read_object,
    whole_folder,
    write_atomically,
)
from vse_jax.base.registry import is_path
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.finetuning import read_report, report_rows
from vse_jax.checkpoints.folder import model_name
from vse_jax.checkpoints.runs import Checkpoints, has_checkpoint
from vse_jax.checkpoints.torch.torch_file import write_safetensors
from vse_jax.config import (
    CUTOFF_FILE,
    FIELDS,
    MODEL_FILE,
    RESUME,
    Config,
    flat_fields,
    keeps_aspect,
    own_vocabulary,
    save_shared_config,
    takes_regions,
    vector_size,
)
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary

CARD = "README.md"
TEMPLATES = Path(__file__).parent / "templates"
_PLACEHOLDER = "USER/NAME"  # of a repository that was not named yet
_TO_FILL_IN = "**TO FILL IN**"
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_SEAL = re.compile(r"\n<!-- vse_jax ([0-9a-f]{64}) -->\n\Z")
_WEIGHTS = ("weights", "image.weights", "text.weights")
# Part of a recipe, though a run may be resumed with others.
_RECIPE = (*_WEIGHTS, "num_epochs", "max_steps")


def write_shared(
    config: Config,
    source: AnyPath,
    model: dict[str, Any],
    target: AnyPath,
    repository: str | None,
    report: dict[str, Any] | None = None,
) -> AnyPath:
    """Writes the folder `target` again; a card that was changed by hand stays.

    Args:
        config, source: of the model, and the folder that it came from.
        model: its {"params", "batch_stats"}, on the host.
        target: W/share.
        repository: USER/NAME on the Hub; None: not known yet.
        report: of its fine-tuning (finetuning.py); None: what `source` holds.

    Raises:
        InputError: no vocabulary, or the folder cannot be written.
    """
    caption_tokenizer(config)  # another model's vocabulary is refused
    repository = repository or _PLACEHOLDER
    with whole_folder(target, replace=True) as folder:
        save_shared_config(config, folder / "config.json")
        copy_vocabulary(config, folder)
        write_safetensors(folder / MODEL_FILE, flatten(model))
        if (source / CUTOFF_FILE).is_file():
            write_atomically(folder / CUTOFF_FILE, read_bytes(source / CUTOFF_FILE))
        before = target / CARD
        kept = read_bytes(before) if before.is_file() else None
        text = (kept or b"").decode(errors="replace")
        seal = _SEAL.search(text)
        if kept is None or (seal and seal[1] == _digest(text[: seal.start()])):
            vocabulary = own_vocabulary(folder, config.text.kind)
            name = vocabulary.name if vocabulary else ""
            report = read_report(source) if report is None else report
            card = _card(config, source, model, repository, name, report).encode()
        else:
            logging.warning(
                "%s: kept as you changed it; remove it to have it written again", before
            )
            card = kept.replace(_PLACEHOLDER.encode(), repository.encode())
        write_atomically(folder / CARD, card)
    return target


# ---- The model card ------------------------------------------------------------------


def _card(
    config: Config,
    source: AnyPath,
    model: dict,
    repository: str,
    vocabulary: str,
    report: dict[str, Any] | None,
) -> str:
    """The text of README.md: a YAML header as the Hub reads it, then Markdown.

    The Hub's `ModelCard.from_template` is not used: it drops comments from the header,
    which say what is to fill in, and asks for a package (Jinja2) of its own.
    """
    name, run = model_name(source), source / "run.json"
    image, text, fields = config.image, config.text, flat_fields(config)

    parameters = sum(math.prod(x.shape) for x in flatten(model["params"]).values())
    regions = takes_regions(image)
    seen = "features of regions" if regions else f"{image.size} px"
    if keeps_aspect(image):
        seen = f"any aspect, at most {image.vit.max_patches} patches"
    about = [
        ("image encoder", f"{image.kind}, {seen}, pooling {image.pool}"),
        ("text encoder", f"{text.kind}, pooling {text.pool}, `{vocabulary}`"),
        ("vectors", f"{vector_size(config)} values"),
        ("parameters", f"{parameters:,}, float32"),
    ]
    trained = 0.0  # when the best epoch was; earlier evaluations are of another
    mixture = report["chosen"] if report is not None else None
    if mixture is not None:
        about.append(("weights", f"between two models: {mixture}"))
    elif has_checkpoint(source):
        with Checkpoints(source, read_only=True) as checkpoints:
            progress = checkpoints.progress()
        if progress is not None and progress.best_step is not None:
            best = source / "checkpoints" / str(progress.best_step)
            # A bucket has no folders, which would know when they were written.
            trained = modified(
                best if isinstance(best, Path) else best / "data/metadata"
            )
            rsum = f"rsum {progress.best_rsum:.1f} on {config.data.dev_split}"
            about.append(("best epoch", f"{progress.best_epoch}, {rsum}"))

    own = {f: v for f, v in fields.items() if FIELDS[f].classes and is_path(v)}
    data = read_object(run).get("data", {}) if run.is_file() else {}
    sizes = {split: size for split, size in data.items() if split != "root"}
    splits = (
        (split, f"{size['images']:,}", f"{size['captions']:,}")
        for split, size in sizes.items()
    )
    if report is not None and mixture is not None:
        evaluations = report["models"][mixture]
    else:
        evaluations = _evaluations(source, trained)
    scores = {split: _scores(metrics) for split, metrics in evaluations.items()}
    results = "None were recorded with this model."
    if scores:
        columns = [[f"{x:.1f}" for _, _, x in column] for column in scores.values()]
        titles = [title for _, title, _ in next(iter(scores.values()))]
        rows = _table(["", *scores], zip(titles, *columns, strict=True))
        results = "Percent of the queries with a right answer among the first k."
        results += f"\n\n{rows}"

    finetuning = ""
    if report is not None and (mixture or len(report["models"]) > 1):
        head, *rest = report_rows(report)
        what = "; ".join(f"{split}: {text}" for split, text in report["splits"].items())
        models = "`start` is the model that training began from, as it was."
        if mixture:
            models = (
                "α is the share of the fine-tuned weights; the others are the start's."
            )
        finetuning = (
            f"\n## Fine-tuning\n\n{_table(head, rest)}\n\n{models} {what}. R@1 is the "
            "percentage of queries whose first result is right; rsum is the sum of "
            "R@1, R@5 and R@10 in both directions.\n"
        )

    differing = (
        (f"`{field}`", _short(field, value), _short(field, FIELDS[field].default))
        for field, value in fields.items()
        if value != FIELDS[field].default
        if FIELDS[field].free < RESUME or field in _RECIPE
    )
    licences = [
        ("these weights", config.hub.license or _TO_FILL_IN),
        (f"the data, `{config.data.name}`", _TO_FILL_IN),
    ]
    for field in _WEIGHTS:
        if (start := fields[field]) is not None:
            kind, dot, _ = field.partition(".")
            what = f"pretrained weights of the {kind} encoder" if dot else "its start"
            licences.append((f"{what}, {_short(field, start)}", _TO_FILL_IN))
    licences.append((f"`{vocabulary}`", _TO_FILL_IN))

    template = (TEMPLATES / "model_card.md").read_text(encoding="utf-8")
    card = string.Template(template).substitute(
        header=_header(config, name, scores),
        name=name,
        version=__version__,
        model=_table(["", ""], about),
        repository=repository,
        trust=", trust_code=True" if own else "",
        images="[a, b]" if regions else '["a.jpg", "b.jpg"]',
        unit=f"  # float32 [regions, {image.feature_dim}]" if regions else "",
        classes="".join(
            f"\n`{field}` is its author's class `{value}`: install its module.\n"
            for field, value in own.items()
        ),
        data=config.data.name,
        splits=f"\n{_table(['split', 'images', 'captions'], splits)}\n"
        if sizes
        else "",
        results=results,
        finetuning=finetuning,
        recipe=_table(["field", "here", "published"], differing),
        licences=_table(["of", "licence"], licences),
    )
    return f"{card}\n<!-- vse_jax {_digest(card)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _header(config: Config, name: str, scores: Mapping[str, list]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415 (slow)

    results = [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=config.data.name,
            dataset_name=config.data.name,
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 2),
        )
        for split, found in scores.items()
        for metric, title, value in found
    ]
    header = ModelCardData(
        license=config.hub.license,
        library_name="vse_jax",
        pipeline_tag="feature-extraction",
        tags=["image-text-retrieval", "vse-infinity", "jax"],
        model_name=name,
        eval_results=results or None,
    ).to_yaml()
    if config.hub.license is None:
        header = f"# license: TO FILL IN, by one of the names of {_LICENSES}\n{header}"
    return header.rstrip()


def _evaluations(folder: AnyPath, since: float) -> dict[str, Any]:
    """Split → contents of its eval_<split>.json, of the best model alone."""
    found = {}
    for file in sorted(folder.glob("eval_*.json")):
        metrics = read_object(file)
        if modified(file) < since:
            logging.warning(
                "%s: older than the best checkpoint, left out; evaluate again", file
            )
        elif "rsum" in metrics and "ensemble" not in metrics:
            found[file.stem.removeprefix("eval_")] = metrics
    return found


def _scores(metrics: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(key, title, value) of a split's recalls and their sum."""
    titles = {"i2t": "image to caption", "t2i": "caption to image"}
    recalls = [
        (f"{way}_r{k}", f"{title}, R@{k}", metrics[way][f"r{k}"])
        for way, title in titles.items()
        for k in (1, 5, 10)
    ]
    return [*recalls, ("rsum", "rsum, the sum of these six", metrics["rsum"])]


def _short(field: str, value: Any) -> str:
    """A value in a table; of the weights it starts from their name, not their place."""
    if field in _WEIGHTS and value is not None and "package:" not in value:
        value = value if "://" in value else model_name(Path(value))
    return f"`{str(value).replace('|', '¦')}`"


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
