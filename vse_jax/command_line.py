"""What the command-line programs share: logging, and errors as one line."""

import contextlib
import sys
from collections.abc import Iterator
from logging import WARNING, Formatter

from absl import logging

from vse_jax.errors import InputError


def set_up_logging() -> None:
    """One short line a message; other packages' chatter only from warnings on."""
    handler = logging.get_absl_handler()
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda r: r.levelno >= WARNING or "vse_jax" in r.pathname)
    logging.set_verbosity(logging.INFO)


@contextlib.contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Ends the program with code 1 and one line on stderr at an `InputError`."""
    try:
        yield
    except InputError as error:
        logging.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
