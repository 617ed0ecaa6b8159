"""A folder that one process at a time may write to: a lock file that says which.

    {"host": "gpu3", "pid": 4711, "since": "2026-01-31 09:15:00+00:00"}

The system's lock on the file (flock) decides, and the system lets go of it when the
process ends, however that happens. What the file says is for people. Only on a file
system without such locks it decides: there a holder on this host that is gone loses the
lock, and one on another host keeps it until somebody removes the file.

In a bucket the lock is an object that is created where there is none. Its holder writes
it again every `BEAT` seconds; who wants it watches for that, and takes it over after
`GONE` seconds without. No clocks are compared.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from absl import logging

from vse_jax.base.buckets import BucketPath
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, lock_file, named_in_errors

BEAT, GONE = 10.0, 60.0  # seconds; in buckets only
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_writer(path: AnyPath, does: str) -> Iterator[None]:
    """Holds the lock file `path` until the block ends; it is then removed.

    Its folder is made when missing, and then removed if it is empty. `does`: what the
    process that has it does ("trains in this folder").

    Raises:
        InputError: another process has it; names host, process and since when. Nothing
            is changed then.
        OSError: it cannot be written (names it).
    """
    if isinstance(path, BucketPath):
        with _only_writer_of_object(path, does):
            yield
        return
    assert isinstance(path, Path)
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
        lock_file(file, wait=False)
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
    who = "which has just started" if holder is None else _described(holder)
    raise InputError(f"{path.parent}: another process ({who}) {does}; {hint}")


def _described(holder: dict[str, Any]) -> str:
    return f"pid {holder['pid']} on {holder['host']}, since {holder['since']}"


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
    if sys.platform == "win32":  # where os.kill would end it
        return False
    with contextlib.suppress(PermissionError):  # another user's
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return True
    return False


# ---- In a bucket ---------------------------------------------------------------------


@contextlib.contextmanager
def _only_writer_of_object(path: BucketPath, does: str) -> Iterator[None]:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "boot": _boot(),
        "token": secrets.token_hex(8),
    }
    _take_object(path, holder, does)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, holder, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(OSError):  # it is then taken over as a killed one's
            if _is_of(_object_holder(path), holder):
                path.unlink(missing_ok=True)


def _take_object(path: BucketPath, holder: dict[str, Any], does: str) -> None:
    taken_over = False
    while True:
        with contextlib.suppress(FileExistsError):
            path.create(json.dumps(holder).encode())
        if taken_over:  # others may have seen the same end, and removed our object
            time.sleep(2)
        found = _object_holder(path)
        if found is None:
            continue
        if _is_of(found, holder):
            return
        here = found.get("boot") == holder["boot"] is not None
        if not (here and _is_gone(found)) and not _falls_silent(path, found):
            raise InputError(
                f"{path.parent}: another process ({_described(found)}) {does}; wait "
                "for its end"
            )
        logging.warning(
            "%s: taken over from a process that has ended (%s)", path, _described(found)
        )
        path.unlink(missing_ok=True)
        taken_over = True


def _falls_silent(path: BucketPath, found: dict[str, Any]) -> bool:
    """Whether a lock's holder gives no sign of life for `GONE` seconds."""
    logging.info(
        "%s: held by %s; waits for its sign of life, %.0f s at most",
        path,
        _described(found),
        GONE,
    )
    end = time.monotonic() + GONE
    while time.monotonic() < end:
        time.sleep(BEAT / 10)
        now = _object_holder(path)
        if now is None:
            return True
        if now != found:
            return False
    return True


def _beat(path: BucketPath, holder: dict[str, Any], ended: threading.Event) -> None:
    """Gives signs of life; ends this process if another one has taken over."""
    number = 0
    while not ended.wait(BEAT):
        number += 1
        try:
            found = _object_holder(path)
            if found is None or _is_of(found, holder):
                path.write_bytes(json.dumps(holder | {"beat": number}).encode())
                continue
        except (OSError, InputError) as error:
            logging.warning("%s: %s; tried again", path, error)
            continue
        # It paused, or had no network, for so long that the folder is no longer its.
        who = _described(found)
        print(f"error: {path}: another process ({who}) has taken over", file=sys.stderr)
        os._exit(1)


def _object_holder(path: BucketPath) -> dict[str, Any] | None:
    """What the lock says; None: there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"host", "pid", "since"} <= found.keys():
        raise InputError(f"{path}: not a lock; remove it if no run trains there")
    return found


def _is_of(found: dict[str, Any] | None, holder: dict[str, Any]) -> bool:
    return found is not None and found.get("token") == holder["token"]


def _boot() -> str | None:
    """Of this machine since it was started: host names may be the same elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None
