"""Progress of anything that takes longer than about two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_LINE_EVERY_S = 10.0  # without a terminal
_WORTH_IT_S = 2.0
_hidden = False


def hide() -> None:
    """Shows nothing from here on: another process of the run does."""
    global _hidden
    _hidden = True


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> Iterator[T]:
    """Yields `items` and shows count, rate and time left on stderr.

    A bar on a terminal; elsewhere (a log file, CI) a plain line every ten seconds and
    one at the end, so that a log stays readable.
    """
    if _hidden:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(
            items,
            desc=description,
            total=total,
            unit=unit,
            initial=initial,
            leave=False,
            delay=_WORTH_IT_S,
        )
        return
    of = f"/{total}" if total is not None else ""

    def print_line(elapsed: float, note: str) -> None:
        rate = (done - initial) / elapsed
        if not note and total is not None and rate > 0:
            note = f", {(total - done) / rate:.0f} s left"
        line = f"{description}: {done}{of} {unit}, {rate:.3g} {unit}/s{note}"
        print(line, file=sys.stderr, flush=True)

    start = last = time.monotonic()
    done = initial
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            print_line(now - start, "")
    elapsed = time.monotonic() - start
    if elapsed > _WORTH_IT_S:
        print_line(elapsed, f", done in {elapsed:.0f} s")
