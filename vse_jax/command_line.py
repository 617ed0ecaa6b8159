"""What the command-line programs share: logging, and errors as one line."""

import contextlib
import sys
from collections.abc import Iterator
from logging import CRITICAL, WARNING, Formatter, getLogger

from absl import logging

from vse_jax.errors import InputError


def set_up_logging() -> None:
    """One short line a message; other packages' chatter only from warnings on.

    A save that fails is reported by checkpoint.py: Orbax's own records of it, its
    tasks that nobody waits for any more, and what its closed event loop throws would
    only bury that line.
    """

    def wanted(record) -> bool:
        ours = "vse_jax" in record.pathname
        return ours or (record.levelno >= WARNING and "orbax" not in record.pathname)

    def unraisable(problem, show=sys.unraisablehook) -> None:
        if "Event loop is closed" not in str(problem.exc_value):
            show(problem)

    handler = logging.get_absl_handler()
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(wanted)
    logging.set_verbosity(logging.INFO)
    sys.unraisablehook = unraisable
    getLogger("asyncio").setLevel(CRITICAL)


@contextlib.contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Ends the program with code 1 and one line on stderr at an `InputError`.

    So does what the operating system says of a file: no space, no permission, …
    """
    try:
        yield
    except (InputError, OSError) as error:
        if isinstance(error, OSError):
            if error.filename is None:
                raise
            error = InputError(f"{error.filename}: {error.strerror}")
        logging.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
