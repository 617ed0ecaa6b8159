"""Things that a config names: by a short name, or as 'package.module:Name'.

So a pooling, a loss or an encoder of your own is a file and one line of config
(docs/extending.md).
"""

import importlib
import importlib.machinery
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath

T = TypeVar("T")
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_path(name: Any) -> bool:
    """Whether a config's value is a name of the form 'package.module:Name'."""
    return isinstance(name, str) and bool(_PATH.fullmatch(name))


def check_code(named: Mapping[str, Any], folder: AnyPath, trusted: bool) -> None:
    """Checks what a model that came in `folder` would have imported.

    named: what its config names, {"image.pool": value, …}.
    trusted: the user said that its classes may be imported.

    Raises:
        InputError: it names classes and is not trusted, or one of them lies in the
            folder itself, in which nothing is ever executed.
    """
    own = {field: value for field, value in named.items() if is_path(value)}
    if not own:
        return
    if not trusted:
        listed = ", ".join(f"config.{field} = {value}" for field, value in own.items())
        raise InputError(
            f"{folder}: this model runs code of its author: {listed}; if you have that "
            "code and trust it, say so: trust_code=True (main.py: --trust_code)"
        )
    home = folder.resolve()
    if Path.cwd().is_relative_to(home):  # modules are looked for there, too
        raise InputError(
            f"{folder}: you are in it, and nothing in it is executed; go elsewhere"
        )
    for field, value in own.items():
        top = value.partition(":")[0].partition(".")[0]
        found = importlib.machinery.PathFinder.find_spec(top, [*sys.path, os.getcwd()])
        places: list[str] = []
        if found is not None:
            places = [found.origin or "", *(found.submodule_search_locations or ())]
        if any(Path(place).resolve().is_relative_to(home) for place in places if place):
            raise InputError(
                f"config.{field}: {value} lies in {folder} itself, and nothing in it "
                "is executed; install it elsewhere"
            )


@dataclass(frozen=True)
class Registry(Generic[T]):
    """What makes the things of one kind.

    kind: for people: 'pooling'.
    paths: short name → 'package.module:Name' of the class or function that makes one.
    base: class of all that is made.
    protocol: method → the names of the parameters that it is called with.
    """

    kind: str
    paths: Mapping[str, str]
    base: type[T]
    protocol: Mapping[str, tuple[str, ...]]

    def make(self, field: str, name: str, **arguments: Any) -> T:
        """The thing that the config's `field` names, by a short name or a path.

        Its maker gets those of the arguments that its parameters ask for.

        Raises:
            InputError: unknown, or what it makes does not fit the protocol (names what
                is missing).
            ImportError, …: whatever the module of a path raises, as it is.
        """
        path = self.paths.get(name, name)
        if not is_path(path):
            raise InputError(
                f"{field}: {name!r} is none of {', '.join(self.paths)}, nor of the "
                "form package.module:Name"
            )
        if name not in self.paths and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # main.py may have been started from elsewhere
        module, _, attribute = path.partition(":")
        maker = getattr(importlib.import_module(module), attribute, None)
        if not callable(maker):
            raise InputError(f"{field}: the module {module} has no {attribute}")
        parameters = _parameters(maker)
        needed = (
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        )
        if lacking := [name for name in needed if name not in arguments]:
            raise InputError(
                f"{field}: {name} asks for {', '.join(lacking)}; there is "
                f"{', '.join(arguments)}"
            )
        made = maker(**{k: v for k, v in arguments.items() if _takes(parameters, k)})

        missing = []
        if not isinstance(made, self.base):
            missing.append(f"no {self.base.__module__}.{self.base.__name__}")
        for method, needs in self.protocol.items():
            function = getattr(made, method, None)
            if not callable(function):
                missing.append(f"no method {method}({', '.join(needs)})")
                continue
            parameters = _parameters(function)
            if lacking := [p for p in needs if not _takes(parameters, p)]:
                missing.append(f"{method} takes no {' and no '.join(lacking)}")
        if missing:
            raise InputError(f"{field}: {name} is no {self.kind}: {'; '.join(missing)}")
        return made


def _parameters(function: Callable) -> list[inspect.Parameter]:
    """What a function, or a class, is called with."""
    if not isinstance(function, type):
        return list(inspect.signature(function).parameters.values())
    if function.__init__ is object.__init__:  # type: ignore[misc]
        return []
    # Not the class itself: flax's say (*args, **kwargs). Without `self`.
    return list(inspect.signature(function.__init__).parameters.values())[1:]  # type: ignore[misc]


def _takes(parameters: list[inspect.Parameter], name: str) -> bool:
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
