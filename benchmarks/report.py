"""The table and the chart of docs/lab/performance.md, from benchmarks/results/.

    python -m benchmarks.report

prints the table and draws docs/images/performance.png.
"""

import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.rows import ROWS, Row
from vse_jax.base.files import write_atomically
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


def read_results(parts: str, suffix: str = "") -> tuple[Path, dict[str, Any]]:
    """This machine's file of results, and what it holds; {parts: {}} if it is new.

    `suffix` ends the file's name: another kind of results.
    """
    name = re.sub("[^a-z0-9]+", "-", machine().lower()).strip("-")
    path = FOLDER / f"{name}{suffix}.json"
    results = json.loads(path.read_text()) if path.exists() else {parts: {}}
    return path, results | {"machine": machine()}


def write_results(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{json.dumps(results, indent=1)}\n".encode())


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
    sides = [result[side] for side in ("ours", "pytorch") if side in result]
    times = [_cell(row, side) for side in sides]
    relation = f"**{ratio(result):.2f}**" if len(sides) == 2 else ""
    goal = flops = shares = ""
    if row.goal is not None:
        goal = f"≤ {row.goal:g} s" if row.ours_only else f"≥ {row.goal:g}"
    if "flops" in result:
        flops = f"{result['flops'] / 1e9:,.0f} G"
        parts = (result["flops"] / median(side) / peak for side in sides)
        shares = ", ".join(f"{part:.0%}" for part in parts)
    theirs = times[1] if len(sides) == 2 else ""
    cells = [row.name, times[0], theirs, relation, goal, flops, shares]
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, side: dict[str, Any]) -> str:
    """'12.3 ms (11.9–13.0)'."""
    middle = median(side)
    if row.items:
        cores = len(os.sched_getaffinity(0))
        rates = sorted(row.items / seconds / cores for seconds in side["times"])
        middle = row.items / middle / cores
        return f"{middle:.0f} images/s a core ({rates[0]:.0f}–{rates[-1]:.0f})"
    unit, factor = ("s", 1.0) if middle >= 1 else ("ms", 1e3)
    values = [factor * t for t in (middle, min(side["times"]), max(side["times"]))]
    # At least three digits: 4.21, 42.1, 421.
    texts = [f"{v:.{0 if v >= 100 else 1 if v >= 10 else 2}f}" for v in values]
    text = f"{texts[0]} {unit} ({texts[1]}–{texts[2]})"
    return text + (", compiled" if side.get("variant") == "compiled" else "")


def table(results: dict[str, Any]) -> str:
    """All rows that were measured, in Markdown; each has its own day's peak."""
    measured = results["rows"]
    lines = [
        line(row, measured[row.name], measured[row.name]["peak_flops"])
        for row in ROWS
        if row.name in measured
    ]
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
    y = np.arange(len(rows))
    reached = np.greater_equal(ratios, goals)
    colors = np.where(reached, style.BLUE, style.ORANGE)
    axes.barh(y, np.subtract(ratios, 1), left=1, color=colors, height=0.6)
    for place, (value, goal) in enumerate(zip(ratios, goals, strict=True)):
        axes.text(1.06 * max(value, goal, 1), place, f"{value:.2f}", va="center")
    axes.vlines(goals, y - 0.42, y + 0.42, color=style.INK, linewidth=2)
    axes.axvline(1, color=style.GREY, linewidth=1)
    axes.set_yticks(y, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlim(0.8 * min(0.5, *ratios), 1.5 * max(20, *ratios))
    axes.set_xlabel("PyTorch's time / ours (black: the goal)")
    figure.suptitle(results["machine"], fontsize=10, color=style.GREY)
    style.save(figure, folder, "performance")


def main() -> None:
    _, results = read_results("rows")
    print(table(results))
    draw(results, IMAGES)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
