"""A folder that one process at a time may write to: a lock file that says which.

    {"host": "gpu3", "pid": 4711, "since": "2026-01-31 09:15:00+00:00"}

The system's lock on the file (flock) decides, and the system lets go of it when the
process ends, however that happens. What the file says is for people. Only on a file
system without such locks it decides: there a holder on this host that is gone loses the
lock, and one on another host keeps it until somebody removes the file.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from vse_jax.base.errors import InputError
from vse_jax.base.files import named_in_errors

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_writer(path: Path, does: str) -> Iterator[None]:
    """Holds the lock file `path` until the block ends; it is then removed.

    Its folder is made when missing, and then removed if it is empty. `does`: what the
    process that has it does ("trains in this folder").

    Raises:
        InputError: another process has it; names host, process and since when. Nothing
            is changed then.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # A holder that ends between our open and our lock takes the file's name away,
        # and the next process would make, and lock, another one.
        for _ in range(3):
            stack.close()
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            with named_in_errors(path):
                _take(file, path, does)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with named_in_errors(path):
            file.truncate(0)
            file.write(json.dumps(holder) + "\n")
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()


def _take(file: IO[str], path: Path, does: str) -> None:
    hint = "wait for its end"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        holder = _holder(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        holder = _holder(file)
        if holder is None or _is_gone(holder):
            return
        hint = f"wait for its end, or remove {path} if it has ended"
    who = "which has just started"
    if holder is not None:
        who = f"pid {holder['pid']} on {holder['host']}, since {holder['since']}"
    raise InputError(f"{path.parent}: another process ({who}) {does}; {hint}")


def _holder(file: IO[str]) -> dict[str, Any] | None:
    """What the file says, if anything; who has just taken it gets a moment to write."""
    for wait in (0.01, 0.1, 0.5, 0):
        file.seek(0)
        with contextlib.suppress(ValueError):
            found = json.loads(file.read())
            if isinstance(found, dict) and {"host", "pid", "since"} <= found.keys():
                return found
        time.sleep(wait)
    return None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this host and has ended."""
    if holder["host"] != socket.gethostname():
        return False
    # A container that starts again may give its process the same number.
    if holder["pid"] == os.getpid():
        return True
    with contextlib.suppress(PermissionError):  # another user's
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return True
    return False
