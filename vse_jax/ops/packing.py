"""Padded captions [b, t, …] as one row of their tokens [n, …], and back.

Half of a padded batch is padding, and most of BERT treats each token by itself.
`places` [n] are the tokens' places in the flattened batch, in their order, and b · t
for what fills the row up (vse_jax/data/collate.py); None: everything stays padded.

On several devices each packs its own captions: `places` are spread like the captions,
and are places among those of the device.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num

from vse_jax.ops.per_device import per_device


def pack(
    x: Num[Array, "b t h"],
    mask: Bool[Array, "b t"],
    places: Int[Array, " n"] | None,
    mesh: Mesh | None = None,
) -> Num[Array, "b t h"] | Num[Array, "n h"]:
    """The tokens' vectors, then zeros; mesh: over whose devices they are spread."""
    return x if places is None else _by(_pack, mesh, x, mask, places)


def unpack(
    x: Float[Array, "b t h"] | Float[Array, "n h"],
    mask: Bool[Array, "b t"],
    places: Int[Array, " n"] | None,
    mesh: Mesh | None = None,
) -> Float[Array, "b t h"]:
    """Inverse of `pack`; zeros where the mask is False."""
    return x if places is None else _by(_unpack, mesh, x, mask, places)


def pack_reference(x, mask, places):
    """The same as indexing has it; `unpack_reference` as a scatter."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.where((places < len(rows))[:, None], rows[places], 0)


def unpack_reference(x, mask, places):
    padded = jnp.zeros((mask.size, x.shape[-1]), x.dtype)
    return padded.at[places].set(x, mode="drop").reshape(*mask.shape, -1)


def _by(move, mesh, *rows):
    def own(_, x, mask, places):
        return move(x, places, _slots(mask, len(places)))

    return per_device(mesh, own, (), *rows)


def _slots(mask, count):
    """[b, t]: where each token lies in the row; `count`, beyond it, for padding."""
    order = jnp.cumsum(mask.reshape(-1)).reshape(mask.shape) - 1
    return jnp.where(mask, order, count)


# One is the other's gradient: the automatic one would be a scatter, token by token.
@jax.custom_vjp
def _pack(x, places, slots):
    del slots
    return x.reshape(-1, x.shape[-1]).at[places].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _unpack(x, places, slots):
    del places
    return x.at[slots].get(mode="fill", fill_value=0)


_pack.defvjp(
    lambda x, *where: (_pack(x, *where), where),
    lambda where, cotangent: (_unpack(cotangent, *where), None, None),
)
_unpack.defvjp(
    lambda x, *where: (_unpack(x, *where), where),
    lambda where, cotangent: (_pack(cotangent, *where), None, None),
)
