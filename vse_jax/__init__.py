"""VSE∞ image–text retrieval in JAX.

`vse_jax.load(folder)` gives a trained model that embeds images and captions: api.py.
The other names are for applications that use a model; vse_search imports nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vse_jax.api import Explanation, Model, load, model_of
    from vse_jax.base.cores import usable_cores
    from vse_jax.base.errors import InputError
    from vse_jax.base.extras import require_extra
    from vse_jax.base.files import (
        AnyPath,
        named_in_errors,
        printable,
        read_bytes,
        whole_file,
        write_atomically,
    )
    from vse_jax.base.lock import only_writer
    from vse_jax.base.progress import progress
    from vse_jax.config import Config, SearchConfig, without_password
    from vse_jax.data.images import (
        MAX_PIXELS,
        ImageBytes,
        load_image,
        opened,
        orientation,
        to_rgb,
    )
    from vse_jax.distributed.runtime import started
    from vse_jax.figures.explanation import plot_explanation

__version__ = "0.1.0"
__all__ = [
    "MAX_PIXELS",
    "AnyPath",
    "Config",
    "Explanation",
    "ImageBytes",
    "InputError",
    "Model",
    "SearchConfig",
    "load",
    "load_image",
    "model_of",
    "named_in_errors",
    "only_writer",
    "opened",
    "orientation",
    "plot_explanation",
    "printable",
    "progress",
    "read_bytes",
    "require_extra",
    "started",
    "to_rgb",
    "usable_cores",
    "whole_file",
    "without_password",
    "write_atomically",
]
_HOMES = {
    "api": ("Explanation", "Model", "load", "model_of"),
    "base.cores": ("usable_cores",),
    "base.errors": ("InputError",),
    "base.extras": ("require_extra",),
    "base.files": (
        "AnyPath",
        "named_in_errors",
        "printable",
        "read_bytes",
        "whole_file",
        "write_atomically",
    ),
    "base.lock": ("only_writer",),
    "base.progress": ("progress",),
    "config": ("Config", "SearchConfig", "without_password"),
    "data.images": (
        "MAX_PIXELS",
        "ImageBytes",
        "load_image",
        "opened",
        "orientation",
        "to_rgb",
    ),
    "distributed.runtime": ("started",),
    "figures.explanation": ("plot_explanation",),
}


def __getattr__(name: str):
    # On demand: JAX takes seconds, and the command line refuses most input without it.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vse_jax.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
