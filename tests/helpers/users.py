"""A user to whom permissions apply: tests may run as root, who may do everything."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NOBODY = 65534


@contextlib.contextmanager
def folder_of_everybody() -> Iterator[Path]:
    """A new folder that every user can enter; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def ordinary_user(owned: Path) -> Iterator[None]:
    """The block runs as a user who is not root, who owns this folder with all in it."""
    if os.geteuid() != 0:
        yield
        return
    for path in (owned, *owned.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
