"""Things that a config names: by a short name, or as 'package.module:Name'.

So a pooling, a loss or a tower of one's own is a file and one line of config
(docs/extending.md).
"""

import functools
import importlib
import importlib.machinery
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from vse_jax.base.errors import InputError

T = TypeVar("T")
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

# The fields of a config that may name a class of one's own, 'package.module:Class'.
OPEN = ("image.kind", "image.pool", "text.kind", "text.pool", "loss.name")


def is_path(name: Any) -> bool:
    """Whether a config's value is a name of the form 'package.module:Name'."""
    return isinstance(name, str) and bool(_PATH.fullmatch(name))


def check_code(fields: Mapping[str, Any], folder: Path, trusted: bool) -> None:
    """Checks what a model that came in a folder would have imported.

    Args:
        fields: of its config, {"image.pool": value, …}.
        folder: where the model lies.
        trusted: the user said that its classes may be imported.

    Raises:
        InputError: it names classes and is not trusted, or one of them lies in the
            folder itself, in which nothing is ever executed.
    """
    own = {field: fields[field] for field in OPEN if is_path(fields.get(field))}
    if own and not trusted:
        named = ", ".join(f"config.{field} = {value}" for field, value in own.items())
        raise InputError(
            f"{folder}: this model runs code of its author: {named}; if you have that "
            "code and trust it, say so: trust_code=True (main.py: --trust_code)"
        )
    home = folder.resolve()
    if own and Path.cwd().is_relative_to(home):  # modules are looked for there, too
        raise InputError(
            f"{folder}: you are in it, and nothing in it is executed; go elsewhere"
        )
    for field, value in own.items():
        top = value.partition(":")[0].partition(".")[0]
        found = importlib.machinery.PathFinder.find_spec(top, [*sys.path, os.getcwd()])
        places = [] if found is None else [found.origin, *_folders(found)]
        if any(Path(place).resolve().is_relative_to(home) for place in places if place):
            raise InputError(
                f"config.{field}: {value} lies in {folder} itself, and nothing in it "
                "is executed; install it elsewhere"
            )


def _folders(spec: importlib.machinery.ModuleSpec) -> list[str]:
    return list(spec.submodule_search_locations or ())


class Registry(Generic[T]):
    """What makes the things of one kind, by name.

    Args:
        kind: for people: 'pooling'.
        makers: name → class or function that makes one. A class of one's own is given
            those of the arguments that its parameters name.
        base: class of all that is made.
        protocol: methods → the names of the parameters that they are called with.
    """

    def __init__(
        self,
        kind: str,
        makers: Mapping[str, Callable[..., T]],
        base: type[T],
        protocol: Mapping[str, tuple[str, ...]],
    ):
        self._kind = kind
        self._makers = makers
        self._base = base
        self._protocol = protocol

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._makers)

    def make(self, field: str, name: str, **arguments: Any) -> T:
        """The thing that the config's `field` names.

        Raises:
            InputError: unknown, or what it makes does not fit the protocol (names what
                is missing).
            ImportError, …: whatever the module of a path raises, as it is.
        """
        maker = self._makers.get(name) or self._imported(field, name)
        made = maker(**_accepted(field, name, maker, arguments))
        self._check(field, name, made)
        return made

    def _imported(self, field: str, name: str) -> Callable[..., T]:
        if not is_path(name):
            raise InputError(
                f"{field}: {name!r} is none of {', '.join(self._makers)}, nor of the "
                "form package.module:Name"
            )
        module, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:  # main.py may have been started from elsewhere
            sys.path.append(os.getcwd())
        found = getattr(importlib.import_module(module), attribute, None)
        if not callable(found):
            raise InputError(f"{field}: the module {module} has no {attribute}")
        return found

    def _check(self, field: str, name: str, made: T) -> None:
        missing = []
        if not isinstance(made, self._base):
            missing.append(f"no {self._base.__module__}.{self._base.__name__}")
        for method, parameters in self._protocol.items():
            function = getattr(made, method, None)
            if not callable(function):
                missing.append(f"no method {method}({', '.join(parameters)})")
                continue
            lacking = [p for p in parameters if not _takes(function, p)]
            if lacking:
                missing.append(f"{method} takes no {' and no '.join(lacking)}")
        if missing:
            raise InputError(
                f"{field}: {name} is no {self._kind}: {'; '.join(missing)}"
            )


def _parameters(function: Callable) -> list[inspect.Parameter]:
    """What a function, or a class, is called with."""
    if isinstance(function, type):  # flax's classes say (*args, **kwargs) of themselves
        if function.__init__ is object.__init__:  # type: ignore[misc]
            return []
        function = functools.partial(function.__init__, None)  # type: ignore[misc]
    return list(inspect.signature(function).parameters.values())


def _takes(function: Callable, name: str) -> bool:
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in _parameters(function))


def _accepted(
    field: str, name: str, maker: Callable, arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Those of the arguments that `maker` takes."""
    unknown = [
        p.name
        for p in _parameters(maker)
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in arguments
    ]
    if unknown:
        raise InputError(
            f"{field}: {name} asks for {', '.join(unknown)}; there is "
            f"{', '.join(arguments)}"
        )
    return {key: value for key, value in arguments.items() if _takes(maker, key)}
