"""Every row of docs/performance.md, ours and PyTorch's in turn.

    python -m benchmarks.compare [--rows=gpo,BERT] [--rounds=5]

Two processes take turns, so that a noisy machine is as noisy for one as for the other;
in every other round PyTorch goes first. Prints the table, and keeps it in
benchmarks/results/MACHINE.json; rows that were not measured stay there as they are.
"""

import contextlib
import importlib.metadata
import sys
import time
from typing import Any

from absl import app, flags

from benchmarks import report
from benchmarks.others import Others
from benchmarks.rows import PEAK, ROWS, Row
from benchmarks.worker import Worker, started
from vse_jax.base.errors import InputError
from vse_jax.command_line import errors_on_one_line

_ROWS = flags.DEFINE_list("rows", [], "Parts of the rows' names; none: all but demo.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side.", lower_bound=1)

_OTHERS_CORES = 0.1  # what other programs may use, over a turn
_LONG = 20.0  # seconds of a turn that is not taken again
_IDLE_CORES = 0.05  # what a waiting process may use of a core
_PAUSE = 0.1  # seconds, in which the other side's threads go to sleep


def chosen(parts: list[str]) -> list[Row]:
    """The rows whose names contain one of the parts, after the matrix product.

    Raises:
        InputError: a part of no name.
    """
    for part in parts:
        if not any(part.lower() in row.name.lower() for row in ROWS):
            names = "; ".join(row.name for row in ROWS)
            raise InputError(f"--rows={part}: in none of the names: {names}")
    return [
        row
        for row in ROWS
        if row.name == PEAK
        or any(part.lower() in row.name.lower() for part in parts)
        or not (parts or row.asked)
    ]


def measure(row: Row, sides: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Times of a row: {side: {"times", "variant"}, "flops"}.

    A turn that other processes disturbed is taken again if it is short; "disturbed"
    counts those that had to stay.
    """
    result: dict[str, Any] = {}
    for name, worker in sides.items():
        flops, variant = worker.make_ready(row.name)
        result[name] = {"times": []}
        if variant:
            result[name]["variant"] = variant
        if flops:
            result["flops"] = flops
    order = list(sides.items())
    rounds = min(rounds, row.rounds or rounds)
    again = 2 * rounds
    for number in range(rounds):
        for name, worker in order if number % 2 == 0 else order[::-1]:
            seconds, others = turn(name, worker)
            while others > _OTHERS_CORES and seconds < _LONG and again:
                again -= 1
                seconds, others = turn(name, worker)
            if others > _OTHERS_CORES:
                result["disturbed"] = result.get("disturbed", 0) + 1
                print(f"{row.name}: others used {others:.2f} cores", file=sys.stderr)
            result[name]["times"].append(seconds)
    return result


def turn(name: str, worker: Worker) -> tuple[float, float]:
    """(seconds, cores that other processes used meanwhile)."""
    time.sleep(_PAUSE)
    others = Others()
    seconds, idle = worker.turn()
    if idle > _IDLE_CORES:
        print(f"{name} used {idle:.2f} cores while it waited", file=sys.stderr)
    return seconds, others.cores()


def main(_) -> None:
    rows = chosen(_ROWS.value)
    path, results = report.read_results("rows")
    results["versions"] = {p: importlib.metadata.version(p) for p in ("jax", "torch")}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(started(module))
            for name, module in (("ours", "our_rows"), ("pytorch", "pytorch_rows"))
        }
        for row in rows:
            sides = {"ours": workers["ours"]} if row.ours_only else workers
            found = measure(row, sides, _ROUNDS.value)
            if row.name == PEAK:
                fastest = min(min(found[side]["times"]) for side in sides)
                peak = found["flops"] / fastest
            results["rows"][row.name] = found | {"peak_flops": peak}
            print(report.line(row, found, peak), flush=True)
            report.write_results(path, results)
    print(f"\n{report.table(results)}")


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
