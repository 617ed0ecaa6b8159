"""The page of the study of poolings, from its ledger alone.

    python -m studies.pooling_page

writes docs/lab/pooling_study.md and its figures for the runs that are there, be it one.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from studies.ledger import Ledger, Result
from studies.variants import POOLINGS, REASONS, VARIANTS, recipe
from vse_jax.base.files import write_atomically
from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.figures.style import BLUE, GREY, INK, save, tidy

LEDGER = Path("docs/lab/pooling_study.jsonl")
DOCUMENT = Path("docs/lab/pooling_study.md")
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
epoch is the best on dev. ± is the sample standard deviation over the seeds; differences
are of runs with the same seed.
"""


def write(results: Sequence[Result]) -> None:
    """Writes the page and the figures of these runs; nothing without any."""
    runs = by_variant(results)
    if not runs:
        return
    FIGURES.mkdir(parents=True, exist_ok=True)
    compared = {name: runs[name] for name in POOLINGS if name in runs}
    plot_tests(compared)
    plot_curves(compared)
    if learned := with_coefficients(runs):
        plot_coefficients(learned)
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
    """The contents of docs/lab/pooling_study.md."""
    config = recipe()
    head = _HEAD.format(
        embed=config.embed_dim,
        epochs=config.num_epochs,
        drop=config.optimizer.lr_update,
        steps=_STEPS_PER_EPOCH * config.num_epochs,
    )
    lines = [head, *_table(runs), "", *_reasons(runs)]
    lines += [
        "![Test rsum of each pooling](../images/pooling_study.png)",
        "",
        "Rsum on dev after each epoch (thick: mean over the seeds):",
        "",
        "![Dev rsum by epoch](../images/pooling_curves.png)",
        "",
    ]
    if with_coefficients(runs):
        lines += [
            "The coefficients that GPO learned, at the best epoch of each run:",
            "",
            "![Learned coefficients](../images/pooling_coefficients.png)",
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
            # How much the best so far grew in the last epochs.
            rises = [max(r.dev) - max(r.dev[:-_LAST] or r.dev) for r in some]
            line = _row(name, some, each, _difference(some, gpo))
            lines.append(f"{line} {_spread(rises, '+')} |")
    return lines


def _row(name: str, some: Sequence[Result], *middle: str) -> str:
    """A variant's line: title, seeds, test, `middle`, best dev."""
    seeds = ", ".join(str(result.seed) for result in some)
    test = _spread([result.test for result in some])
    dev = _spread([max(result.dev) for result in some])
    return f"| {' | '.join([VARIANTS[name].title, seeds, test, *middle, dev])} |"


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
            compared = (_difference(some, runs.get(to, [])) for to in ("gpo", "max"))
            lines.append(_row(name, some, *compared))
    return [*lines, ""]


def _paired(some: Sequence[Result], others: Sequence[Result]) -> list[float]:
    """Differences on test, of the seeds that both have."""
    tests = {result.seed: result.test for result in others}
    return [r.test - tests[r.seed] for r in some if r.seed in tests]


def _difference(some: Sequence[Result], others: Sequence[Result]) -> str:
    paired = _paired(some, others)
    return _spread(paired, "+") if paired else ""


def _spread(values: Sequence[float], sign: str = "") -> str:
    text = f"{statistics.mean(values):{sign}.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text


# ---- The figures ---------------------------------------------------------------------


def plot_tests(runs: Runs) -> None:
    """Draws `pooling_study.{png,svg}`: test rsum of each variant, mean and seeds."""
    figure = Figure(figsize=(10, 0.55 * len(runs) + 1.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = list(runs)[::-1]  # drawn from below
    for y, name in enumerate(names):
        test = np.array([result.test for result in runs[name]])
        axes.plot(test.mean(), y, "|", color=INK, markersize=22, markeredgewidth=2)
        axes.plot(test, np.full(len(test), y), "o", color=BLUE, markersize=7, alpha=0.7)
    axes.set_yticks(range(len(runs)), [VARIANTS[name].title for name in names])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.set_xlabel("rsum on test: each seed (dot) and their mean (line)")
    axes.margins(x=0.1)
    tidy(axes)
    save(figure, FIGURES, "pooling_study")


def plot_curves(runs: Runs) -> None:
    """Draws `pooling_curves.{png,svg}`: dev rsum after each epoch."""
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, some), color in zip(runs.items(), _colors(len(runs)), strict=True):
        curves = np.array([result.dev for result in some])
        epochs = np.arange(1, curves.shape[1] + 1)
        if len(curves) > 1:
            axes.plot(epochs, curves.T, color=color, linewidth=0.7, alpha=0.6)
        mean, title = curves.mean(axis=0), VARIANTS[name].title
        axes.plot(epochs, mean, "o-", color=color, markersize=4, label=title)
    axes.set_ylim(bottom=min(run.dev[0] for some in runs.values() for run in some))
    axes.set_xlabel(f"epoch ({_STEPS_PER_EPOCH} steps)")
    axes.set_ylabel("rsum on dev")
    axes.legend(frameon=False, loc="lower right")
    tidy(axes)
    save(figure, FIGURES, "pooling_curves")


def plot_coefficients(runs: Runs) -> None:
    """Draws `pooling_coefficients.{png,svg}`: what the GPOs of each run have learned.

    The whole set of 49 cells, and captions of 16 tokens. A color for each variant, a
    line for each of its seeds.
    """
    sizes = {"image": 49, "text": 16}
    figure = Figure(figsize=(13, 6), dpi=120, layout="constrained")
    for axes, (tower, size) in zip(figure.subplots(1, 2), sizes.items(), strict=True):
        ranks = np.arange(1, size + 1)
        for (name, some), color in zip(runs.items(), _colors(len(runs)), strict=True):
            for number, result in enumerate(some):
                weights = (result.coefficients[tower] or {})[str(size)]
                label = VARIANTS[name].title if number == 0 else None
                axes.plot(ranks, weights, color=color, label=label)
        axes.axhline(1 / size, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"{tower} tower, {size} vectors", loc="left", fontsize=13)
        axes.set_xlabel("rank of the value in its dimension (1: the largest)")
        axes.set_ylabel("coefficient (dashed: the average's)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        tidy(axes)
    save(figure, FIGURES, "pooling_coefficients")


def _colors(count: int) -> np.ndarray:
    return matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))


def main() -> None:
    set_up_logging()
    write(Ledger(LEDGER, recipe()).results)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
