"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """The cores that this process may run on: in a container, fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
