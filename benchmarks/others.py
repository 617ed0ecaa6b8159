"""What other processes take from a measurement (Linux).

PyTorch's threads wait for each other at every operation: with one core taken by another
process, its turns last several times as long, and ours do not.
"""

import os
import time
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Others:
    """Counts from its making on."""

    def __init__(self):
        self._start = time.perf_counter()
        self._everyone, self._own = _everyone(), _own()

    def cores(self) -> float:
        """That processes outside this process group, or other machines, have used."""
        used = (_everyone() - self._everyone) - (_own() - self._own)
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
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
        if int(fields[2]) == os.getpgrp():
            ticks += sum(map(int, fields[11:15]))
    return _TICK * ticks
