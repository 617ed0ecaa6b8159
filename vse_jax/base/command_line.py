"""What the command-line programs share: flags, logging, and errors as one line."""

import contextlib
import sys
from collections.abc import Iterator
from logging import CRITICAL, WARNING, Formatter, getLogger

from absl import flags, logging

from vse_jax.base.errors import InputError


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl flags; without --config, the workdir's saved config is used.

    Raises:
        InputError: unknown flag or config field, or a value of the wrong type.
    """
    names = [arg.lstrip("-").split("=")[0] for arg in argv]
    if "config" not in names and "workdir" in names:
        position = names.index("workdir")
        workdir = argv[position].partition("=")[2]
        if "=" not in argv[position] and len(argv) > position + 1:
            workdir = argv[position + 1]
        if not workdir:
            raise InputError("--workdir: no folder given")
        argv = [argv[0], f"--config=configs/saved.py:{workdir}", *argv[1:]]
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        field = str(error).strip("\"'")
        named = [arg for arg in argv if f".{field}" in arg.split("=")[0]]
        raise InputError(f"{(named or [field])[0]}: no such config field") from None
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        raise InputError(" ".join(str(error).split())) from None


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
