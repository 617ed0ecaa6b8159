"""Output folders that appear only when they are whole."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vse_jax.errors import InputError


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives a folder to write into, and makes it `target` when the block ends well.

    Raises:
      InputError: `target` exists and is not empty, or cannot be written.
    """
    target = target.absolute()
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{target}: is already there; name a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a rename within one file system is a single act.
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}."
        ) as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            yield folder
            folder.rename(target)
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from error
