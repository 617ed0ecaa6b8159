"""Padded captions [b, t, …] as rows of whole captions [r, w, …], and back.

Half of a padded batch is padding. `places` [r, w] are the tokens' places in the
flattened batch, and b · t for what fills a row up (vse_jax/data/collate.py).

On several devices each packs its own captions: `places` are spread like the captions,
and are places among those of the device.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num

from vse_jax.ops.per_device import on_accelerators, per_device


def attends_in_rows(mesh: Mesh | None) -> bool:
    """Whether tokens attend to those of their caption among all of their row.

    Matrices of a row's size fill an accelerator's lanes. A CPU computes each value, and
    has fewer of them where captions are padded again for attention.
    """
    return on_accelerators(mesh)


def pack(
    x: Num[Array, "b t h"],
    mask: Bool[Array, "b t"],
    places: Int[Array, "*rows"],
    mesh: Mesh | None = None,
) -> Num[Array, "*rows h"]:
    """The tokens' vectors, zeros between; mesh: over whose devices they are spread."""
    return _by(_pack, mesh, x, mask, places)


def unpack(
    x: Float[Array, "*rows h"],
    mask: Bool[Array, "b t"],
    places: Int[Array, "*rows"],
    mesh: Mesh | None = None,
) -> Float[Array, "b t h"]:
    """Inverse of `pack`; zeros where the mask is False."""
    return _by(_unpack, mesh, x, mask, places)


def pack_reference(x, mask, places):
    """The same as indexing has it; `unpack_reference` as a scatter."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.where((places < len(rows))[..., None], rows[places], 0)


def unpack_reference(x, mask, places):
    padded = jnp.zeros((mask.size, x.shape[-1]), x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    return padded.at[places.reshape(-1)].set(rows, mode="drop").reshape(*mask.shape, -1)


def _by(move, mesh, *rows):
    def own(_, x, mask, places):
        # Where each token lies in the rows; beyond them for padding.
        slots = jnp.full(mask.size, places.size, places.dtype)
        numbers = jnp.arange(places.size, dtype=places.dtype)
        slots = slots.at[places.reshape(-1)].set(numbers, mode="drop")
        return move(x, places, slots.reshape(mask.shape))

    return per_device(mesh, own, (), *rows)


def _taken(x, indices):
    return x.reshape(-1, x.shape[-1]).at[indices].get(mode="fill", fill_value=0)


# One is the other's gradient: the automatic one would be a scatter, token by token.
@jax.custom_vjp
def _pack(x, places, slots):
    return _taken(x, places)


@jax.custom_vjp
def _unpack(x, places, slots):
    return _taken(x, slots)


_pack.defvjp(
    lambda x, *where: (_pack(x, *where), where),
    lambda where, cotangent: (_unpack(cotangent, *where), None, None),
)
_unpack.defvjp(
    lambda x, *where: (_unpack(x, *where), where),
    lambda where, cotangent: (_pack(cotangent, *where), None, None),
)
