"""Every row of docs/lab/performance.md, ours and PyTorch's in turn.

    python -m benchmarks.compare [--rows=gpo,BERT] [--rounds=5]

Two processes take turns, so that a noisy machine is as noisy for one as for the other;
in every other round PyTorch goes first. Prints the table, and keeps it in
benchmarks/results/MACHINE.json; rows that were not measured stay there as they are.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import report
from benchmarks.rows import PEAK, ROWS, Row
from vse_jax.base.errors import InputError
from vse_jax.command_line import errors_on_one_line

_ROWS = flags.DEFINE_list("rows", [], "Parts of the rows' names; none: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side.", lower_bound=1)

_OTHERS_CORES = 0.1  # what other programs may use, over a turn
_LONG = 20.0  # seconds of a turn that is not taken again
_IDLE_CORES = 0.05  # what a waiting process may use of a core
_PAUSE = 0.1  # seconds, in which the other side's threads go to sleep
_LONG_WAIT = 0.5  # seconds: threads may spin for some milliseconds after their work
_TICK = 1 / os.sysconf("SC_CLK_TCK")


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
        if row is PEAK
        or not parts
        or any(part.lower() in row.name.lower() for part in parts)
    ]


# What the process of a side holds: its module, the row that is ready, and when and
# after how many seconds of work it last did something.
_side: dict[str, Any] = {}


def _start(module: str, folder: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = folder  # which outlives this process
    _side["rows"] = importlib.import_module(f"benchmarks.{module}")
    _side["rows"].prepare()


def _end_with_parent() -> None:
    """An executor's processes would wait for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_ready(row: Row) -> tuple[float | None, str]:
    """Builds and warms up a row; returns its FLOP and the variant kept."""
    _side.pop("ready", None)  # the last row's memory goes first
    gc.collect()
    ready = _side["ready"] = getattr(_side["rows"], row.build)(*row.arguments)
    _side["ended"] = time.perf_counter(), time.process_time()
    return ready.flops, ready.variant


def _turn() -> tuple[float, float]:
    """Measures once: (seconds, cores that this process used since its last turn)."""
    ended, spent = _side["ended"]
    waited, used = time.perf_counter() - ended, time.process_time() - spent
    seconds = _side["ready"].turn()
    _side["ended"] = time.perf_counter(), time.process_time()
    return seconds, used / waited if waited > _LONG_WAIT else 0.0


def measure(
    row: Row, sides: dict[str, ProcessPoolExecutor], rounds: int
) -> dict[str, Any]:
    """Times of a row: {side: {"times", "variant"}, "flops"}.

    A turn that other processes disturbed is taken again if it is short; "disturbed"
    counts those that had to stay.
    """
    result: dict[str, Any] = {}
    for name, side in sides.items():
        flops, variant = side.submit(_make_ready, row).result()
        result[name] = {"times": []} | ({"variant": variant} if variant else {})
        if flops:
            result["flops"] = flops
    order = list(sides.items())
    rounds = min(rounds, row.rounds or rounds)
    again = 2 * rounds
    for number in range(rounds):
        for name, side in order if number % 2 == 0 else order[::-1]:
            seconds, others = turn(name, side)
            while others > _OTHERS_CORES and seconds < _LONG and again:
                again -= 1
                seconds, others = turn(name, side)
            if others > _OTHERS_CORES:
                result["disturbed"] = result.get("disturbed", 0) + 1
                print(f"{row.name}: others used {others:.2f} cores", file=sys.stderr)
            result[name]["times"].append(seconds)
    return result


def turn(name: str, side: ProcessPoolExecutor) -> tuple[float, float]:
    """(seconds, cores that other processes used meanwhile)."""
    time.sleep(_PAUSE)
    others = Others()
    seconds, idle = side.submit(_turn).result()
    if idle > _IDLE_CORES:
        print(f"{name} used {idle:.2f} cores while it waited", file=sys.stderr)
    return seconds, others.cores()


class Others:
    """What other processes take from a measurement (Linux), counted from its making on.

    PyTorch's threads wait for each other at every operation: with one core taken by
    another process, its turns last several times as long, and ours do not.
    """

    def __init__(self):
        self._start = time.perf_counter()
        self._used = _everyone() - _own()

    def cores(self) -> float:
        """That processes outside this process group, or other machines, have used."""
        used = _everyone() - _own() - self._used
        return max(used, 0.0) / (time.perf_counter() - self._start)


def _everyone() -> float:
    """Seconds that all cores have been busy, or lent to another virtual machine."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return _TICK * (user + nice + system + irq + softirq + steal)


def _own() -> float:
    """Seconds of this process group, with the children that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == os.getpgrp():
                ticks += sum(map(int, fields[11:15]))
    return _TICK * ticks


def main(_) -> None:
    rows = chosen(_ROWS.value)
    path, results = report.read_results("rows")
    results["versions"] = {p: importlib.metadata.version(p) for p in ("jax", "torch")}
    spawn = multiprocessing.get_context("spawn")  # neither side inherits threads
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        both = {}
        for name, module in (("ours", "our_rows"), ("pytorch", "pytorch_rows")):
            side = ProcessPoolExecutor(1, spawn, _start, (module, folder))
            both[name] = stack.enter_context(side)
        for row in rows:
            sides = {"ours": both["ours"]} if row.ours_only else both
            found = measure(row, sides, _ROUNDS.value)
            if row is PEAK:
                fastest = min(min(found[side]["times"]) for side in sides)
                peak = found["flops"] / fastest
            results["rows"][row.name] = found | {"peak_flops": peak}
            print(report.line(row, found, peak), flush=True)
            report.write_results(path, results)
    print(f"\n{report.table(results)}")


if __name__ == "__main__":
    with errors_on_one_line():
        app.run(main)
