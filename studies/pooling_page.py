"""The page of the study of poolings, from its ledger alone.

    python -m studies.pooling_page

writes docs/pooling_study.md and its figures for the runs that are there, be it one.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from studies.ledger import Ledger, Result
from studies.plots import study_coefficients, study_curves, study_dots
from studies.variants import POOLINGS, REASONS, VARIANTS, recipe
from vse_jax.base.files import write_atomically
from vse_jax.command_line import errors_on_one_line, set_up_logging

LEDGER = Path("docs/pooling_study.jsonl")
DOCUMENT = Path("docs/pooling_study.md")
FIGURES = Path("docs/images")
_STEPS_PER_EPOCH = 135  # five passes over 3,495 images, 128 a step
_LAST = 3  # epochs over which a curve has to be flat

Runs = dict[str, list[Result]]  # variant → its runs, by seed

_HEAD = """\
# Which pooling is best on features of a pretrained CNN?

    make study

trains one recipe (`configs/openmoji_cells.py`) with every pooling and writes this page
after each run; `python -m studies.pooling_page` writes it again from the runs that
[pooling_study.jsonl](pooling_study.jsonl) holds.

The regime is the paper's: features of a frozen pretrained CNN as regions and the
published region recipe (AdamW 5e-4, margin 0.2, all negatives in the first epoch, then
the hardest, gradients clipped at 2, size augmentation 0.2). What is smaller here:

| | here | the paper, COCO |
|---|---|---|
| training images, five captions each | 3,495 (OpenMoji) | 113,287 |
| an image's set | 7 × 7 cells of EfficientNet-Lite0 | 36 detected regions |
| values of a cell or region | 1280 | 2048 |
| text | 6-layer MiniLM, frozen, no words dropped | BERT-base, a tenth of the rate |
| embedding | {embed} | 1024 |
| epochs; rate a tenth after | {epochs}; {drop} | 25; 15 |
| steps | {steps:,} | 110,000 |
| an image twice in a batch | never | possible |

Test split: 500 images, 2,500 captions; rsum is at most 600, about 6 by chance. The
epoch is the best on dev. ± is the sample standard deviation over the seeds.
"""


def write(results: Sequence[Result]) -> None:
    """Writes the page and the figures of these runs; nothing without any."""
    runs = by_variant(results)
    if not runs:
        return
    FIGURES.mkdir(parents=True, exist_ok=True)
    titles = {name: VARIANTS[name].title for name in runs}
    compared = {name: runs[name] for name in POOLINGS if name in runs}
    study_dots(compared, titles, FIGURES)
    study_curves(compared, titles, FIGURES)
    if learned := with_coefficients(runs):
        study_coefficients(learned, titles, FIGURES)
    write_atomically(DOCUMENT, document(runs).encode())
    print(f"{DOCUMENT} is written")


def by_variant(results: Sequence[Result]) -> Runs:
    """The runs of each variant, in the order of the study's list."""
    runs: Runs = {}
    for name in VARIANTS:
        found = [result for result in results if result.variant == name]
        if found:
            runs[name] = sorted(found, key=lambda result: result.seed)
    return runs


def with_coefficients(runs: Runs) -> Runs:
    """The variants with a GPO in both towers."""
    return {
        name: some for name, some in runs.items() if all(some[0].coefficients.values())
    }


def document(runs: Runs) -> str:
    """The contents of docs/pooling_study.md."""
    config = recipe()
    head = _HEAD.format(
        embed=config.embed_dim,
        epochs=config.num_epochs,
        drop=config.optimizer.lr_update,
        steps=_STEPS_PER_EPOCH * config.num_epochs,
    )
    lines = [head, *_table(runs), "", *_claims(runs), *_reasons(runs)]
    lines += [
        "![Test rsum of each pooling](images/pooling_study.png)",
        "",
        "Rsum on dev after each epoch (thick: mean over the seeds):",
        "",
        "![Dev rsum by epoch](images/pooling_curves.png)",
        "",
    ]
    if with_coefficients(runs):
        lines += [
            "The coefficients that GPO learned, at the best epoch of each run:",
            "",
            "![Learned coefficients](images/pooling_coefficients.png)",
            "",
        ]
    return "\n".join(lines)


def _table(runs: Runs) -> list[str]:
    lines = [
        "| pooling (both towers, unless two are named) | seeds | test rsum | "
        "of each seed | minus GPO | best dev rsum | "
        f"of that won in the last {_LAST} epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        if name in POOLINGS:
            each = " / ".join(f"{result.test:.1f}" for result in some)
            gpo = [] if name == "gpo" else runs.get("gpo", [])
            rise = _spread([_rise(result.dev) for result in some], "+")
            lines.append(_row(name, some, [each, _difference(some, gpo)], [rise]))
    return lines


def _row(
    name: str, some: Sequence[Result], middle: Sequence[str], end: Sequence[str] = ()
) -> str:
    """A variant's line: title, seeds, test, `middle`, best dev, `end`."""
    seeds = ", ".join(str(result.seed) for result in some)
    test = _spread([result.test for result in some])
    dev = _spread([max(result.dev) for result in some])
    return f"| {' | '.join([VARIANTS[name].title, seeds, test, *middle, dev, *end])} |"


def _claims(runs: Runs) -> list[str]:
    """What the table says of the paper's two claims; empty where it says nothing."""
    gpo = runs.get("gpo", [])
    others = {
        name: _difference(some, gpo)
        for name, some in runs.items()
        if name in POOLINGS and not name.startswith("gpo")
    }
    if not any(others.values()):
        return []
    best = max(
        (name for name, difference in others.items() if difference),
        key=lambda name: statistics.mean(_paired(runs[name], gpo)),
    )
    shared = len(_paired(runs[best], gpo))
    lines = [
        f"The best of the other poolings on test is **{POOLINGS[best].title}**: "
        f"{others[best]} against GPO",
        "(one seed, so chance has no measure here)."
        if shared == 1
        else "(mean and deviation of the differences, seed by seed).",
    ]
    if others.get("vsepp"):
        lines += [f"VSE++, the paper's baseline: {others['vsepp']}."]
    return [*lines, ""]


def _reasons(runs: Runs) -> list[str]:
    """The runs that change one of the paper's conditions each."""
    if not any(name in runs for name in REASONS):
        return []
    lines = [
        "One condition changed at a time. The differences are to the run of the same "
        "seed",
        "with nothing changed:",
        "",
        "| run | seeds | test rsum | to GPO | to maximum | best dev rsum |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        if name in REASONS:
            compared = [_difference(some, runs.get(to, [])) for to in ("gpo", "max")]
            lines.append(_row(name, some, compared))
    return [*lines, ""]


def _paired(some: Sequence[Result], others: Sequence[Result]) -> list[float]:
    """Differences on test, of the seeds that both have."""
    tests = {result.seed: result.test for result in others}
    return [r.test - tests[r.seed] for r in some if r.seed in tests]


def _difference(some: Sequence[Result], others: Sequence[Result]) -> str:
    paired = _paired(some, others)
    return _spread(paired, "+") if paired else ""


def _rise(dev: Sequence[float]) -> float:
    """How much the best so far grew in the last epochs."""
    return max(dev) - max(dev[:-_LAST] or dev)


def _spread(values: Sequence[float], sign: str = "") -> str:
    text = f"{statistics.mean(values):{sign}.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text


def main() -> None:
    set_up_logging()
    write(Ledger(LEDGER, recipe()).results)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
