"""Configs that a test may change; those that the package makes are frozen."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vse_jax import config
from vse_jax.config import Config, nested, typed


def draft(values: Config | ConfigDict | None = None) -> Any:
    """A `Config` that is set like a ConfigDict: `config.image.size = 64`.

    Args:
        values: None: the published ones.
    """
    return _draft(values if isinstance(values, Config) else typed(values or {}))


def _draft(node: Any) -> Any:
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return _class(type(node).__name__)(
        **{
            name: _draft(value) if dataclasses.is_dataclass(value) else value
            for name, value in fields.items()
        }
    )


@functools.cache
def _class(name: str) -> type:
    """A class of vse_jax.config with fields that can be set."""
    frozen = getattr(config, name)

    def set_one(self, name: str, value: Any) -> None:
        if not hasattr(self, name):
            raise AttributeError(f"no field {name}")
        object.__setattr__(self, name, value)

    def update(self, changes: Mapping[str, Any] | None = None, **more: Any) -> None:
        for name, value in {**(changes or {}), **more}.items():
            if isinstance(value, Mapping):
                getattr(self, name).update(value)
            else:
                setattr(self, name, value)

    def update_flat(self, changes: Mapping[str, Any]) -> None:
        self.update(nested(changes))

    def reduce(self) -> tuple:  # for workers in processes of their own
        return _restored, (name, vars(self))

    methods = {
        "__setattr__": set_one,
        "update": update,
        "update_from_flattened_dict": update_flat,
        "__reduce__": reduce,
    }
    return type(frozen.__name__, (frozen,), methods)


def _restored(name: str, fields: dict[str, Any]) -> Any:
    return _class(name)(**fields)
