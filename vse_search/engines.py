"""The engine that config.search.engine names."""

import importlib
from typing import Any

from vse_jax import InputError
from vse_search.engine import Engine
from vse_search.exact import ExactEngine
from vse_search.store import Store


def make_engine(store: Store, name: str, url: str | None = None) -> Engine:
    """Of the name 'exact', 'approximate' or 'qdrant' (which needs `url`).

    Raises:
        InputError: a package is missing, or the server does not answer.
    """
    if name == "exact":
        return ExactEngine(store)
    try:
        module: Any = importlib.import_module(f"vse_search.{name}")
    except ImportError as error:
        raise InputError(
            f"config.search.engine: {name!r} needs {error.name}: make setup-search"
        ) from None
    if name == "approximate":
        return module.ApproximateEngine(store)
    return module.QdrantEngine(store, url)
