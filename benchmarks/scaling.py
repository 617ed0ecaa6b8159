"""How cost grows: step time against batch, set size and caption length; ranking's
against the number of pictures.

    python -m benchmarks.scaling [--curves=batch,pictures]

Prints every time with the exponent fitted to it, draws docs/images/scaling.png and
keeps the times in benchmarks/results/MACHINE-scaling.json; curves that were not
measured stay there as they are.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks import inputs, our_rows, report
from benchmarks.rows import Ready, repeated
from vse_jax.base.command_line import errors_on_one_line
from vse_jax.base.errors import check_choice
from vse_jax.base.files import write_atomically
from vse_jax.evaluation.ranking import retrieval_metrics
from vse_jax.figures import style

_BATCH, _REGIONS, _TOKENS = 16, 36, 16  # of a step, where they are not what grows
_POOLED = 128, 1024  # sets and dimensions of GPO by itself
_VALUES = 64  # of an embedding: at 1,024 the matrix product would be nearly all
_ROUNDS = 3


def step(batch: int = _BATCH, regions: int = _REGIONS, tokens: int = _TOKENS) -> Ready:
    """A training step of the region recipe, every set and caption of full size."""
    config = inputs.region_config()
    config.batch_size, config.image.max_regions = batch, regions
    config.image.drop = 0.0
    rng = np.random.default_rng(0)
    captions = {
        "token_ids": rng.integers(1000, 20000, (batch, tokens), np.int32),
        "token_lengths": np.full(batch, tokens, np.int32),
    }
    run = our_rows.training_step(config, inputs.images(config, batch) | captions)
    run()
    run()
    return Ready(repeated(run))


def ranking(pictures: int) -> Ready:
    """All metrics, five captions a picture."""
    images, captions = inputs.embeddings(pictures, _VALUES)
    return Ready(repeated(lambda: retrieval_metrics(images, captions, 5)))


@dataclass(frozen=True)
class Curve:
    """make: size → what is measured. fit_from: smaller sizes are not fitted, for what
    does not grow with the size is most of their time."""

    title: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int], Ready]
    fit_from: int = 0


CURVES = {
    "batch": Curve(
        f"training step ({_REGIONS} regions, {_TOKENS} tokens)",
        "pairs in a batch",
        (4, 8, 16, 32, 64),
        lambda size: step(batch=size),
    ),
    "regions": Curve(
        f"training step (batch {_BATCH}, {_TOKENS} tokens)",
        "regions in a set",
        (9, 18, 36, 72, 144, 288),
        lambda size: step(regions=size),
    ),
    "gpo": Curve(
        "GPO alone, forward + backward ({} sets, {} dimensions)".format(*_POOLED),
        "vectors in a set",
        (8, 16, 32, 64, 128, 256),
        lambda size: our_rows.gpo((_POOLED[0], size, _POOLED[1])),
    ),
    "tokens": Curve(
        f"training step (batch {_BATCH}, {_REGIONS} regions)",
        "tokens in a caption",
        (8, 16, 32, 64, 128),
        lambda size: step(tokens=size),
    ),
    "pictures": Curve(
        f"metrics (five captions a picture, {_VALUES} values)",
        "pictures",
        (1_000, 3_000, 10_000, 30_000, 100_000),
        ranking,
        fit_from=3_000,
    ),
}
_CURVES = flags.DEFINE_list("curves", list(CURVES), f"Some of {', '.join(CURVES)}.")


def measure(curve: Curve) -> dict[str, list[float]]:
    """Seconds by size: the median of three turns, one where a turn takes a minute."""
    times = []
    for size in curve.sizes:
        ready = curve.make(size)
        turns = [ready.turn()]
        while turns[0] < 60 and len(turns) < _ROUNDS:
            turns.append(ready.turn())
        times.append(statistics.median(turns))
        print(f"{curve.title}: {size:,} {curve.unit}: {times[-1]:.4g} s", flush=True)
    return {"sizes": list(curve.sizes), "seconds": times}


def fit(sizes: list[float], seconds: list[float]) -> tuple[float, float]:
    """(exponent, seconds at size 1) of a power law: least squares of logarithms."""
    exponent, constant = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent), float(np.exp(constant))


def _fitted(curve: Curve, found: dict[str, list[float]]) -> tuple[float, float]:
    points = [
        (size, seconds)
        for size, seconds in zip(found["sizes"], found["seconds"], strict=True)
        if size >= curve.fit_from
    ]
    return fit(*map(list, zip(*points, strict=True)))


def table(curves: dict[str, Any]) -> str:
    """Sizes, seconds and exponents in Markdown."""
    lines = ["| what | grows | seconds | exponent |", "|---|---|---|---|"]
    for name, found in curves.items():
        curve = CURVES[name]
        sizes = ", ".join(f"{size:,}" for size in found["sizes"])
        seconds = ", ".join(f"{time:.3g}" for time in found["seconds"])
        exponent, _ = _fitted(curve, found)
        lines.append(
            f"| {curve.title} | {curve.unit}: {sizes} | {seconds} | {exponent:.2f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> None:
    """A panel for each curve, both axes logarithmic, with the fitted line."""
    curves = results["curves"]
    figure = Figure(figsize=(4.2 * len(curves), 4), layout="constrained")
    for axes, (name, found) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        curve = CURVES[name]
        exponent, constant = _fitted(curve, found)
        sizes = np.array([size for size in found["sizes"] if size >= curve.fit_from])
        style.tidy(axes)
        axes.loglog(
            sizes,
            constant * sizes**exponent,
            color=style.ORANGE,
            linewidth=1.2,
            label=f"size^{exponent:.2f}",
        )
        axes.loglog(found["sizes"], found["seconds"], "o", color=style.BLUE)
        axes.set_xticks(found["sizes"], [f"{size:,}" for size in found["sizes"]])
        axes.minorticks_off()
        axes.set_xlabel(curve.unit)
        axes.set_ylabel("seconds")
        axes.set_title(curve.title.replace(" (", "\n("), fontsize=10)
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle(results["machine"], fontsize=10, color=style.GREY)
    style.save(figure, report.IMAGES, "scaling")


def main(_) -> None:
    for name in _CURVES.value:
        check_choice("--curves", name, tuple(CURVES))
    path = report.results_path("-scaling")
    results = report.read(path) if path.exists() else {"curves": {}}
    results["machine"] = report.machine()
    our_rows.prepare()
    for name in _CURVES.value:
        results["curves"][name] = measure(CURVES[name])
        ordered = {n: results["curves"][n] for n in CURVES if n in results["curves"]}
        results["curves"] = ordered
        write_atomically(path, f"{json.dumps(results, indent=1)}\n".encode())
    print(table(results["curves"]))
    draw(results)


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
