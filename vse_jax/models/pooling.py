"""The aggregators by their config name: a set of vectors becomes one vector."""

from flax import nnx

from vse_jax.errors import InputError
from vse_jax.models.gpo import GPO

_POOLS = {"gpo": GPO}


def make_pool(kind: str, *, rngs: nnx.Rngs) -> GPO:
    """Returns the aggregator that config.image.pool or config.text.pool names."""
    if kind not in _POOLS:
        raise InputError(f"config: pool {kind!r} is none of {', '.join(_POOLS)}")
    return _POOLS[kind](rngs=rngs)
