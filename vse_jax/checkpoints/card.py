"""The model card of a shared model, README.md, written from its run.

A card that its owner has changed is kept: its last line says what was written.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vse_jax import __version__
from vse_jax.base.registry import OPEN, is_path
from vse_jax.config import RESUME_FREE, Config, flat_fields, is_in, takes_regions

PLACEHOLDER = "USER/NAME"  # of a repository that was not named yet
_TO_FILL_IN = "**TO FILL IN**"
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_SEAL = re.compile(r"\n<!-- vse_jax ([0-9a-f]{64}) -->\n\Z")
_WEIGHTS = ("image.weights", "text.weights")
# How a run is carried out, which is no part of its recipe.
_ASIDE = tuple({*RESUME_FREE} - {*_WEIGHTS, "num_epochs", "max_steps"})
_METRICS = {
    f"{direction}_r{k}": f"{name}, R@{k}"
    for direction, name in (("i2t", "image to caption"), ("t2i", "caption to image"))
    for k in (1, 5, 10)
}


class Facts(NamedTuple):
    """What is known of a run beyond its config.

    name: the run's folder. repository: on the Hub, or `PLACEHOLDER`. parameters: their
    number. progress: {"rsum", "epoch"} of the best checkpoint; empty: not trained here.
    splits: {"train": {"images": n, "captions": n}, …}, or empty. evaluations: split →
    the contents of eval_<split>.json. vocabulary: name of its file.
    """

    name: str
    repository: str
    parameters: int
    progress: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, int]]
    evaluations: Mapping[str, Mapping[str, Any]]
    vocabulary: str


def write_card(config: Config, published: Config, facts: Facts) -> str:
    """The text of README.md: a YAML header as the Hub reads it, then Markdown.

    Args:
        config: of the run.
        published: the paper's recipe (configs/common.py), which the run is compared to.
        facts: of the run.
    """
    parts = [
        *_introduction(config, facts),
        *_use(config, facts),
        *_data(config, facts),
        *_results(facts),
        *_recipe(config, published),
        *_licence(config, facts),
    ]
    text = f"---\n{_header(config, facts)}---\n\n" + "\n".join(parts) + "\n"
    return f"{text}\n<!-- vse_jax {_digest(text)} -->\n"


def is_as_written(text: str) -> bool:
    """Whether nobody has changed a card since `write_card`."""
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _header(config: Config, facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415 (slow)

    found = [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=config.data.name,
            dataset_name=config.data.name,
            dataset_split=split,
            metric_type=key,
            metric_name=name,
            metric_value=round(value, 2),
        )
        for split, metrics in facts.evaluations.items()
        for key, name, value in _scores(metrics)
    ]
    header = ModelCardData(
        license=config.hub.license,
        library_name="vse_jax",
        pipeline_tag="feature-extraction",
        tags=["image-text-retrieval", "vse-infinity", "jax"],
        model_name=facts.name,
        eval_results=found or None,
    ).to_yaml()
    if config.hub.license is None:
        header = f"# license: TO FILL IN, by one of the names of {_LICENSES}\n{header}"
    return f"{header.rstrip()}\n"


def _scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(key, name, value) of a split's recalls and their sum."""
    for key, name in _METRICS.items():
        direction, k = key.split("_")
        yield key, name, metrics[direction][k]
    yield "rsum", "rsum, the sum of these six", metrics["rsum"]


def _introduction(config: Config, facts: Facts) -> list[str]:
    image, text = config.image, config.text
    seen = f"{image.size} px" if not takes_regions(image) else "features of regions"
    rows = {
        "image tower": f"{image.kind}, {seen}, pooling {image.pool}",
        "text tower": f"{text.kind}, pooling {text.pool}, `{facts.vocabulary}`",
        "vectors": f"{config.embed_dim} values",
        "parameters": f"{facts.parameters:,}, float32",
    }
    if facts.progress:
        rows["best epoch"] = (
            f"{facts.progress['epoch']}, rsum {facts.progress['rsum']:.1f} on "
            f"{config.data.dev_split}"
        )
    return [
        f"# {facts.name}",
        "",
        "Finds pictures by sentence and sentences by picture: two towers map both into",
        "one space, where the inner product is the similarity. Made with `vse_jax` "
        f"{__version__},",
        "a JAX version of [VSE∞](https://arxiv.org/abs/2011.04305).",
        "",
        *_table(["", ""], rows.items()),
    ]


def _use(config: Config, facts: Facts) -> list[str]:
    fields = flat_fields(config)
    own = {field: fields[field] for field in OPEN if is_path(fields[field])}
    trust = ", trust_code=True" if own else ""
    pictures, unit = '["a.jpg", "b.jpg"]', ""
    if takes_regions(config.image):
        pictures, unit = "[a, b]", f"  # float32 [regions, {config.image.feature_dim}]"
    lines = [
        "",
        "## Use",
        "",
        "```python",
        "import vse_jax",
        "",
        f'model = vse_jax.load("hf://{facts.repository}"{trust})',
        f"pictures = model.encode_images({pictures}){unit}",
        'sentences = model.encode_captions(["two dogs by the sea"])',
        "similarities = pictures @ sentences.T",
        "```",
    ]
    for field, value in own.items():
        lines += ["", f"`{field}` is its author's class `{value}`: install its module."]
    return lines


def _data(config: Config, facts: Facts) -> list[str]:
    lines = ["", "## Data", "", f"`{config.data.name}`: the model knows what is there."]
    if facts.splits:
        rows = (
            (split, f"{size['images']:,}", f"{size['captions']:,}")
            for split, size in facts.splits.items()
        )
        lines += ["", *_table(["split", "pictures", "captions"], rows)]
    return lines


def _results(facts: Facts) -> list[str]:
    lines = ["", "## Results", ""]
    if not facts.evaluations:
        return [*lines, "None were recorded with this model."]
    splits = list(facts.evaluations)
    scores = [list(_scores(metrics)) for metrics in facts.evaluations.values()]
    rows = (
        (row[0][1], *(f"{value:.1f}" for _, _, value in row))
        for row in zip(*scores, strict=True)
    )
    lines += ["Percent of the queries with a right answer among the first k.", ""]
    return [*lines, *_table(["", *splits], rows)]


def _recipe(config: Config, published: Config) -> list[str]:
    """The fields that differ; of start weights their names, not their places."""
    there, here = flat_fields(published), flat_fields(config)
    rows = [
        (f"`{field}`", _short(field, value), _short(field, there.get(field)))
        for field, value in here.items()
        if value != there.get(field) and not is_in(field, _ASIDE)
    ]
    return [
        "",
        "## Recipe",
        "",
        "What differs from the published recipe (grid and BERT, on COCO); all fields",
        "are in `config.json`.",
        "",
        *_table(["field", "here", "published"], rows),
    ]


def _short(field: str, value: Any) -> str:
    if field in _WEIGHTS and value is not None:
        value = Path(value).name if "package:" not in value else value
    return f"`{str(value).replace('|', '¦')}`"


def _licence(config: Config, facts: Facts) -> list[str]:
    rows = {"these weights": config.hub.license or _TO_FILL_IN}
    rows[f"the data, `{config.data.name}`"] = _TO_FILL_IN
    for tower in ("image", "text"):
        start = config[tower].weights
        if start is not None:
            named = _short(f"{tower}.weights", start)
            rows[f"start weights of the {tower} tower, {named}"] = _TO_FILL_IN
    rows[f"`{facts.vocabulary}`"] = _TO_FILL_IN
    return ["", "## Licence", "", *_table(["of", "licence"], rows.items())]


def _table(head: list[str], rows) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
