"""VSE∞ image–text retrieval in JAX.

`vse_jax.load(folder)` gives a trained model that embeds pictures and captions: api.py.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vse_jax.api import Explanation, Model, load

__version__ = "0.1.0"
__all__ = ["Explanation", "Model", "load"]


def __getattr__(name: str):
    # On demand: the command line is quick to refuse what needs no JAX.
    if name in __all__:
        from vse_jax import api  # noqa: PLC0415 (loads jax: seconds)

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
