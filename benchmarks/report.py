"""The table and the chart of docs/performance.md, from benchmarks/results/MACHINE.json.

    python -m benchmarks.report

prints the table and draws docs/images/performance.png.
"""

import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.rows import ROWS, Row
from vse_jax.command_line import errors_on_one_line
from vse_jax.figures import style

FOLDER = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
_HEADER = (
    "| | ours | PyTorch | PyTorch / ours | goal | FLOP | of the peak: ours, PyTorch |\n"
    "|---|---|---|---|---|---|---|"
)


def machine() -> str:
    """The processor and the number of cores: 'AMD EPYC, 2 cores'."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    model = found[1] if found else "unknown processor"
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def results_path(what: str = "") -> Path:
    """Of this machine; `what` ends the name of another kind of results."""
    name = re.sub("[^a-z0-9]+", "-", machine().lower()).strip("-")
    return FOLDER / f"{name}{what}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def median(found: dict[str, Any]) -> float:
    """Of one side's times."""
    return statistics.median(found["times"])


def ratio(result: dict[str, Any]) -> float:
    """PyTorch's median over ours."""
    return median(result["pytorch"]) / median(result["ours"])


def line(row: Row, result: dict[str, Any], peak: float) -> str:
    """The row in Markdown: medians with the range of all rounds.

    `peak`: FLOP/s of a matrix product, which those of the row are compared with.
    """
    ours, theirs = result["ours"], result.get("pytorch")
    goal, relation = "", ""
    if row.goal is not None:
        goal = f"≤ {row.goal:g} s" if row.ours_only else f"≥ {row.goal:g}"
    if theirs is not None:
        relation = f"**{ratio(result):.2f}**"
    flops, shares = "", ""
    if "flops" in result:
        flops = f"{result['flops'] / 1e9:,.0f} G"
        shares = ", ".join(
            f"{result['flops'] / median(side) / peak:.0%}"
            for side in (ours, theirs)
            if side is not None
        )
    cells = (
        *(row.name, _cell(row, ours), _cell(row, theirs) if theirs else ""),
        *(relation, goal, flops, shares),
    )
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, side: dict[str, Any]) -> str:
    """'12.3 ms (11.9–13.0)'."""
    middle = median(side)
    if row.items:
        cores = len(os.sched_getaffinity(0))
        rates = sorted(row.items / seconds / cores for seconds in side["times"])
        middle = row.items / middle / cores
        return f"{middle:.0f} pictures/s a core ({rates[0]:.0f}–{rates[-1]:.0f})"
    unit, factor = ("s", 1.0) if middle >= 1 else ("ms", 1e3)
    low, high = factor * min(side["times"]), factor * max(side["times"])
    text = f"{_three(factor * middle)} {unit} ({_three(low)}–{_three(high)})"
    return text + (", compiled" if side.get("variant") == "compiled" else "")


def _three(value: float) -> str:
    """At least three digits: 4.21, 42.1, 421."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def table(results: dict[str, Any]) -> str:
    """All rows that were measured, in Markdown; each has its own day's peak."""
    rows = ((row, results["rows"].get(row.name)) for row in ROWS)
    lines = (line(row, found, found["peak_flops"]) for row, found in rows if found)
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return "\n".join([f"{results['machine']} ({versions})", "", _HEADER, *lines])


def draw(results: dict[str, Any], folder: Path) -> None:
    """Bars of PyTorch's time over ours, from 1 to the left or right, with the goals."""
    rows = [
        row
        for row in ROWS
        if row.goal and not row.ours_only and row.name in results["rows"]
    ]
    goals = [row.goal or 0.0 for row in rows]
    ratios = [ratio(results["rows"][row.name]) for row in rows]
    figure = Figure(figsize=(10, 0.42 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    style.tidy(axes)
    axes.grid(axis="y", visible=False)
    places = range(len(rows))
    colours = [
        style.BLUE if value >= goal else style.ORANGE
        for value, goal in zip(ratios, goals, strict=True)
    ]
    lengths = [value - 1 for value in ratios]
    axes.barh(places, lengths, left=1, color=colours, height=0.6)
    for place, goal, value in zip(places, goals, ratios, strict=True):
        axes.plot(
            [goal] * 2, [place - 0.42, place + 0.42], color=style.INK, linewidth=2
        )
        axes.annotate(
            f"{value:.2f}",
            (max(value, goal, 1), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=style.INK,
        )
    axes.axvline(1, color=style.GREY, linewidth=1)
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlim(0.8 * min(0.5, *ratios), 1.5 * max(20, *ratios))
    axes.set_xlabel("PyTorch's time / ours (black: the goal)")
    figure.suptitle(results["machine"], fontsize=10, color=style.GREY)
    style.save(figure, folder, "performance")


def main() -> None:
    results = read(results_path())
    print(table(results))
    draw(results, IMAGES)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
