"""A loss over the global batch: on all devices, in blocks that fit."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

# Similarities that one device holds at a time (64 MB); a whole batch of 4096.
_BLOCK = 2**24


def batch_loss(
    loss: nnx.Module,
    images: Float[Array, "b d"],
    captions: Float[Array, "b d"],
    epoch: int | Int[Array, ""],
    image_ids: Int[Array, " b"] | None = None,
    mesh: Mesh | None = None,
    *,
    block: int = _BLOCK,
) -> Float[Array, ""]:
    """Returns the loss of a batch of matching pairs, in both directions.

    Every other caption of the batch is a negative of an image and every other image one
    of a caption.

    Each device compares its own images with all captions and its own captions with all
    images. Doing both products, instead of one whose columns lie on all devices, keeps
    everything but the embeddings local, so that batch² / devices similarities are the
    most that a device holds; of those, `block` at a time.

    Args:
        loss: see `models.losses.Loss`.
        images: embeddings; row i matches row i of `captions`.
        captions: embeddings.
        epoch: from 0; may be traced.
        image_ids: pairs with equal ones are no negatives of each other; None: all are.
        mesh: over whose devices the rows are spread; None: all are here.
        block: the number of similarities to hold at a time, at least a row of them.
    """
    rows = _Rows(images, captions, image_ids)
    if mesh is None:
        return _both_ways(_Costs(loss, epoch, 0, block), rows, rows)
    definition, state = nnx.split(loss)

    def of_device(state, epoch, rows):
        gathered = jax.tree.map(
            lambda x: jax.lax.all_gather(x, mesh.axis_names, tiled=True), rows
        )
        first = jax.lax.axis_index(mesh.axis_names) * len(rows.images)
        costs = _Costs(nnx.merge(definition, state), epoch, first, block)
        return jax.lax.psum(_both_ways(costs, rows, gathered), mesh.axis_names)

    spread = P(mesh.axis_names)
    sharded = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(), P(), spread), out_specs=P()
    )
    return sharded(state, jnp.asarray(epoch), rows)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """Pairs: a device's or all of the batch."""

    images: Float[Array, "n d"]
    captions: Float[Array, "n d"]
    ids: Int[Array, " n"] | None


@dataclass(frozen=True)
class _Costs:
    """What both directions of one device share; see `batch_loss`."""

    loss: nnx.Module
    epoch: int | Int[Array, ""]
    first: int | Int[Array, ""]  # the batch's row where the device's pairs begin
    block: int


def _both_ways(costs: _Costs, own: _Rows, all_rows: _Rows) -> Float[Array, ""]:
    """The costs of one device's images and of its captions."""
    pairs = (own.images * own.captions).sum(axis=1)
    ids = (own.ids, all_rows.ids)
    images = _one_way(costs, own.images, all_rows.captions, pairs, ids)
    return images + _one_way(costs, own.captions, all_rows.images, pairs, ids)


def _one_way(
    costs: _Costs,
    queries: Float[Array, "n d"],
    candidates: Float[Array, "b d"],
    pairs: Float[Array, " n"],
    ids: tuple[Int[Array, " n"] | None, Int[Array, " b"] | None],
) -> Float[Array, ""]:
    """The costs of the queries; query i matches candidate first + i."""
    count, total = len(queries), len(candidates)
    blocks = -(-count // max(costs.block // total, 1))
    rows = -(-count // blocks)

    def block_costs(number):
        # The last block begins early enough to be whole; what it repeats costs nothing.
        start = jnp.minimum(number * rows, count - rows)

        def of_block(x):
            return jax.lax.dynamic_slice_in_dim(x, start, rows)

        similarity = jnp.matmul(
            of_block(queries), candidates.T, precision=jax.lax.Precision.HIGHEST
        )
        row = start + jnp.arange(rows)
        negatives = jnp.arange(total) != costs.first + row[:, None]
        if ids[0] is not None:
            negatives &= of_block(ids[0])[:, None] != ids[1]
        each = costs.loss(similarity, of_block(pairs), negatives, costs.epoch)
        return jnp.where(row < number * rows, 0, each).sum()

    if blocks == 1:
        return block_costs(0)
    # Recomputed in the backward pass: no block outlives its turn.
    return jax.lax.map(jax.checkpoint(block_costs), jnp.arange(blocks)).sum()
