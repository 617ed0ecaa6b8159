"""The table of docs/lab/performance.md, from benchmarks/results/.

python -m benchmarks.report
"""

import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, Row
from vse_jax.base.files import write_atomically
from vse_jax.command_line import errors_on_one_line

FOLDER = Path(__file__).parent / "results"
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


def main() -> None:
    _, results = read_results("rows")
    print(table(results))


if __name__ == "__main__":
    with errors_on_one_line():
        main()
