"""Host memory of computations on CPUs."""

import ctypes
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def disable_malloc_trim() -> None:
    """Freed memory stays with this process; no effect where libc is not glibc.

    By default malloc maps each large block again and returns it when it is freed. XLA's
    CPU programs allocate such blocks at every call; clearing and mapping their pages
    took a seventh of a training step. One arena serves all threads, since only it may
    hold large blocks; threads that allocated before this call keep their own.

    Call it before JAX starts threads, and only in a process that runs batch after batch
    to its end: a server would keep the memory of its largest request.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if mallopt := getattr(libc, "mallopt", None):
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(option, value)
