"""How cost grows: step time against batch, set size and caption length; ranking's
against the number of images.

    python -m benchmarks.scaling [--curves=batch,images]

Prints every time with the exponent fitted to it, draws docs/images/scaling.png and
keeps the times in benchmarks/results/MACHINE-scaling.json; curves that were not
measured stay there as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike

from benchmarks import inputs, our_rows, report
from benchmarks.rows import Ready, repeated
from vse_jax.base.errors import check_choice
from vse_jax.command_line import errors_on_one_line
from vse_jax.config import with_fields
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.figures import style

_BATCH, _REGIONS, _TOKENS = 16, 36, 16  # of a step, where they are not what grows
_POOLED = 128, 1024  # sets and dimensions of GPO by itself
_VALUES = 64  # of an embedding: at 1,024 the matrix product would be nearly all
_ROUNDS = 3
_PANELS = 3  # in a row of the figure


def step(batch: int = _BATCH, regions: int = _REGIONS, tokens: int = _TOKENS) -> Ready:
    """A training step of the region recipe, every set and caption of full size."""
    changes = {"batch_size": batch, "image.max_regions": regions, "image.drop": 0.0}
    config = with_fields(inputs.region_config(), changes)
    rng = np.random.default_rng(0)
    captions = {
        "token_ids": rng.integers(1000, 20000, (batch, tokens), np.int32),
        "token_lengths": np.full(batch, tokens, np.int32),
    }
    run = our_rows.training_step(config, inputs.images(config, batch) | captions)
    return our_rows.warm(run)


def ranking(count: int) -> Ready:
    """All metrics, five captions an image."""
    images, captions = inputs.embeddings(count, _VALUES)
    return Ready(repeated(lambda: retrieval_metrics(images, captions, 5)))


class Curve(NamedTuple):
    title: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int], Ready]  # size → what is measured


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
        lambda size: our_rows.gpo(_POOLED[0], size, _POOLED[1]),
    ),
    "tokens": Curve(
        f"training step (batch {_BATCH}, {_REGIONS} regions)",
        "tokens in a caption",
        (8, 16, 32, 64, 128),
        lambda size: step(tokens=size),
    ),
    "images": Curve(
        f"metrics (five captions an image, {_VALUES} values)",
        "images",
        (1_000, 3_000, 10_000, 30_000, 100_000),
        ranking,
    ),
}
_CURVES = flags.DEFINE_list("curves", list(CURVES), f"Some of {', '.join(CURVES)}.")


def measure(curve: Curve) -> dict[str, list[float]]:
    """Seconds by size: the fastest of three turns, one where a turn takes a minute.

    What disturbs a turn makes it longer, and disturbs one size more than another.
    """
    times = []
    for size in curve.sizes:
        ready = curve.make(size)
        turns = [ready.turn()]
        while turns[0] < 60 and len(turns) < _ROUNDS:
            turns.append(ready.turn())
        times.append(min(turns))
        print(f"{curve.title}: {size:,} {curve.unit}: {times[-1]:.4g} s", flush=True)
    return {"sizes": list(curve.sizes), "seconds": times}


class Law(NamedTuple):
    """seconds = fixed + factor · size^exponent."""

    fixed: float
    factor: float
    exponent: float

    def seconds(self, sizes: np.ndarray) -> np.ndarray:
        return self.fixed + self.factor * sizes**self.exponent

    def __str__(self) -> str:
        """'0.33 s + 0.05 s · n^0.97'; without a fixed cost below a millisecond."""
        fixed = f"{self.fixed:.2g} s + " if self.fixed >= 1e-3 else ""
        return f"{fixed}{self.factor:.2g} s · n^{self.exponent:.2f}"


def fit(sizes: ArrayLike, seconds: ArrayLike) -> Law:
    """The law with the least squares of relative errors.

    For each of many fixed costs the rest is a line in logarithms.
    """
    sizes, seconds = np.array(sizes, float), np.array(seconds)
    laws = []
    for fixed in np.linspace(0, 0.98, 197) * seconds.min():
        exponent, constant = np.polyfit(np.log(sizes), np.log(seconds - fixed), 1)
        laws.append(Law(float(fixed), float(np.exp(constant)), float(exponent)))
    return min(laws, key=lambda law: np.square(law.seconds(sizes) / seconds - 1).sum())


def table(curves: dict[str, Any]) -> str:
    """Sizes, seconds and the fitted laws in Markdown."""
    lines = ["| what | n | seconds | fitted |", "|---|---|---|---|"]
    for name, found in curves.items():
        title, unit, *_ = CURVES[name]
        sizes = ", ".join(f"{size:,}" for size in found["sizes"])
        seconds = ", ".join(f"{time:.3g}" for time in found["seconds"])
        law = fit(found["sizes"], found["seconds"])
        lines.append(f"| {title} | {unit}: {sizes} | {seconds} | {law} |")
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> None:
    """A panel for each curve, both axes logarithmic, with the fitted law."""
    curves = results["curves"]
    rows = -(-len(curves) // _PANELS)
    figure = Figure(figsize=(4.3 * _PANELS, 3.7 * rows), layout="constrained")
    for number, (name, found) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, _PANELS, number)
        law = fit(found["sizes"], found["seconds"])
        sizes = np.geomspace(found["sizes"][0], found["sizes"][-1])
        style.tidy(axes)
        axes.loglog(sizes, law.seconds(sizes), color=style.ORANGE, label=str(law))
        axes.loglog(found["sizes"], found["seconds"], "o", color=style.BLUE)
        axes.set_xticks(found["sizes"], [f"{size:,}" for size in found["sizes"]])
        low, high = min(found["seconds"]), max(found["seconds"])
        axes.set_ylim(0.7 * low, 1.8 * high)  # wide enough for a tick
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel(CURVES[name].unit)
        axes.set_ylabel("seconds")
        axes.set_title(CURVES[name].title.replace(" (", "\n("), fontsize=10)
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle(results["machine"], fontsize=10, color=style.GREY)
    style.save(figure, report.IMAGES, "scaling")


def main(_) -> None:
    for name in _CURVES.value:
        check_choice("--curves", name, tuple(CURVES))
    path, results = report.read_results("curves", "-scaling")
    our_rows.prepare()
    for name in _CURVES.value:
        results["curves"][name] = measure(CURVES[name])
        curves = results["curves"]
        results["curves"] = {name: curves[name] for name in CURVES if name in curves}
        report.write_results(path, results)
    print(table(results["curves"]))
    draw(results)


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
