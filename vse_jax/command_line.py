"""What the command-line programs share: configs, flags, logging, errors as one line."""

import contextlib
import difflib
import importlib.util
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from logging import CRITICAL, WARNING, Formatter, getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vse_jax.base.errors import InputError
from vse_jax.base.files import HUB, AnyPath, any_path, hub_command, printable
from vse_jax.config import (
    Config,
    config_dict,
    flat_fields,
    load_config,
    problems,
    typed,
    with_paths,
)

_OVERRIDE = "--config."
_PACKAGE = Path(__file__).parent
_OURS = [_PACKAGE, _PACKAGE.with_name("vse_search")]
# Where configs/ is: beside the package in a clone, inside it where it is installed.
_INSTALLED = _PACKAGE / "recipes"
_HOME = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent


class PathParser(flags.ArgumentParser):
    """Of a flag that is a path; `bucket`: its name, if the path may be in a bucket."""

    def __init__(self, bucket: str | None = None):
        self._bucket = bucket

    def parse(self, argument: str) -> AnyPath | None:
        if argument and argument.startswith(HUB):
            raise ValueError(
                f"fetch it first: {hub_command(argument)}; or name the model with "
                "--model, and with --workdir where results go"
            )
        if argument and "://" in argument:
            if self._bucket is None:
                raise ValueError("needs a local path")
            return any_path(argument, self._bucket)
        return Path(os.path.expanduser(argument)) if argument else None

    def flag_type(self) -> str:
        return "path"


def start(run: Callable[[list[str]], None], module: str) -> None:
    """Starts `run`, of a module that defines the flags; the file started is another."""
    # absl's --help is of the file that was started.
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for flag in flags.FLAGS.get_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(program(run), flags_parser=parse)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses absl flags; for absl.app.run(…, flags_parser=parse).

    Returns:
        The program's name and the arguments --config.FIELD=VALUE, which it leaves.
    """
    arguments: list[str] = []
    overrides: list[str] = []
    for argument in argv:
        is_override = argument.lstrip("-").startswith("config.")
        (overrides if is_override else arguments).append(argument)
    with errors_on_one_line():
        try:
            rest = flags.FLAGS(arguments)[1:]
        except flags.Error as error:
            raise InputError(_plain(error)) from None
        if rest:
            raise InputError(f"{rest[0]}: no such argument")
    return [argv[0], *(_OVERRIDE + argument.lstrip("-")[7:] for argument in overrides)]


def program(run: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """`run` as what absl.app.run calls, with the arguments that `parse` left."""

    def main(argv: list[str]) -> None:
        for stream in (sys.stdout, sys.stderr):  # their encoding may be Latin-1
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        set_up_logging()
        with errors_on_one_line():
            run(argv[1:])

    return main


def final_config(values: ConfigDict, overrides: Sequence[str]) -> Config:
    """The config with what a command line sets in it, checked; `~` is spelled out.

    Args:
        values: of a config file or a saved config.
        overrides: --config.FIELD=VALUE.

    Raises:
        InputError: wrong fields; names all of them.
    """
    wrong = override(values, overrides)
    config = typed(values)
    wrong += problems(config)
    if wrong:
        raise InputError("; ".join(wrong))
    return with_paths(config, os.path.expanduser)


def read_config(name: str, *, trust_code: bool = False) -> ConfigDict:
    """The config of a file: FILE.py, FILE.py:VARIANT, or a run's FILE.json.

    Args:
        name: path, looked for below the current folder; then configs/NAME.py is one of
            this package's recipes. `~` is the user's folder. A Python file defines
            get_config(), or get_config(variant).
        trust_code: a JSON file of a shared model may name classes to import.

    Raises:
        InputError: no such file, or an error in it (names its line).
    """
    file, _, variant = (name := os.path.expanduser(name)).partition(":")
    if Path(name).is_file():  # a run's folder may have a time in its name
        file, variant = name, ""
    path = next((p for p in (Path(file), _HOME / file) if p.is_file()), None)
    if path is None:
        raise InputError(f"--config={name}: no such file {file}")
    if path.suffix == ".json":
        return config_dict(load_config(path, trust_code=trust_code))
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config={name}: neither a .py nor a .json file")
    module = importlib.util.module_from_spec(spec)
    if str(_HOME) not in sys.path:
        sys.path.append(str(_HOME))  # a config of one's own may import the recipes
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([variant] if variant else []))
    except InputError:
        raise
    except Exception as error:  # the file is the user's: anything may go wrong in it
        if isinstance(error, SyntaxError):
            lines, what = [error.lineno], f"SyntaxError: {error.msg}"
        else:  # the deepest place in the file that the error came through
            frames = traceback.extract_tb(error.__traceback__)
            own = path.resolve()
            lines = [f.lineno for f in frames if Path(f.filename).resolve() == own]
            what = f"{type(error).__name__}: {_plain(error)}"
        line = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{line}: {what}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() returns no ConfigDict")
    return config


def override(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Sets fields of `config` by arguments of the form --config.FIELD=VALUE.

    Returns:
        A text for each unknown field and each value of the wrong type.
    """
    wrong = []
    for argument in arguments:
        field, equals, _ = argument.removeprefix(_OVERRIDE).partition("=")
        known = flat_fields(config)
        if field not in known:
            close = difflib.get_close_matches(field, known, 1, cutoff=0.85)
            hint = f"; did you mean {_OVERRIDE}{close[0]}?" if close else ""
            wrong.append(f"{argument}: no such config field{hint}")
        elif not equals:
            wrong.append(f"{argument}: no value; write {argument}=VALUE")
        else:
            # The library parses values by the field's type; a set of flags of its own
            # for each argument, so that every wrong one is found.
            parser = flags.FlagValues()
            line = ["main.py", argument]
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=parser, sys_argv=line
            )
            try:
                parser(line)
            except (flags.Error, TypeError, ValueError, SyntaxError) as error:
                reason = _plain(error).removeprefix(f"flag {argument}: ")
                wrong.append(f"{argument}: {reason}")
    return wrong


def set_up_logging() -> None:
    """One short line a message; other packages' chatter only from warnings on.

    A save that fails is reported by checkpoints/runs.py: Orbax's own records of it,
    its tasks that nobody waits for any more, and what its closed event loop throws
    would only bury that line. --verbosity=1 shows them all.
    """

    def wanted(record) -> bool:
        file = Path(record.pathname)
        if any(map(file.is_relative_to, _OURS)):
            return True
        orbax = getattr(sys.modules.get("orbax"), "__path__", ())
        return record.levelno >= WARNING and not any(map(file.is_relative_to, orbax))

    def unraisable(problem, show=sys.unraisablehook) -> None:
        if "Event loop is closed" not in str(problem.exc_value):
            show(problem)

    # Read when jax is loaded; what XLA's warnings say is for its developers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = logging.get_absl_handler()
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    if verbose():
        return
    handler.addFilter(wanted)
    sys.unraisablehook = unraisable
    getLogger("asyncio").setLevel(CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def verbose() -> bool:
    """Whether --verbosity=1 (or more) asks for tracebacks and all records."""
    return flags.FLAGS.is_parsed() and flags.FLAGS.verbosity >= 1


@contextlib.contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Ends the program with code 1 and one line on stderr at an `InputError`.

    So does what the operating system says of a file: no space, no permission, … Before
    it comes the traceback, with --verbosity=1.
    """
    try:
        yield
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        line = str(error)
        if isinstance(error, OSError):
            line = f"{error.filename}: {error.strerror}"
        logging.flush()
        if verbose():
            traceback.print_exc()
        print(f"error: {printable(' '.join(line.split()))}", file=sys.stderr)
        sys.exit(1)


def _plain(error: BaseException) -> str:
    """An exception's text on one line; of a ConfigDict's, only what a user needs."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    unknown = re.match(r'Key "(\w+)" does not exist', text)
    if unknown:
        meant = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {meant[1]!r}?" if meant else ""
        return f"no field {unknown[1]!r} in the config{hint}"
    return " ".join(text.split()) or type(error).__name__
