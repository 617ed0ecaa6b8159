"""The triplet hinge losses VSE0 and VSE++, blockwise over the global batch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

# Similarities that one device holds at a time (64 MB); a whole batch of 4096.
_BLOCK = 2**24


def hinge_loss(
    images: Float[Array, "b d"],
    captions: Float[Array, "b d"],
    margin: float,
    hardest: bool | Bool[Array, ""],
    mesh: Mesh | None = None,
    block: int = _BLOCK,
) -> Float[Array, ""]:
    """Returns the loss of a batch of matching pairs, summed over the batch.

    Every other caption of the batch is a negative of an image and every other image one
    of a caption; a negative costs max(0, margin + its similarity − the pair's).

    Each device compares its own images with all captions and its own captions with all
    images. Doing both products, instead of one whose columns lie on all devices, keeps
    everything but the embeddings local, so that batch² / devices similarities are the
    most that a device holds; of those, `block` at a time.

    Args:
        images: embeddings; row i matches row i of `captions`.
        captions: embeddings.
        margin: of the hinge, in units of similarity.
        hardest: sum over the most violating negative of each row and column only
            (VSE++) instead of over all of them (VSE0). May be traced.
        mesh: over whose devices the rows are spread; None: all are here.
        block: the number of similarities to hold at a time, at least a row of them.
    """
    if mesh is None:
        hinge = _Hinge(margin, hardest, first=0, block=block)
        return _both_ways(images, captions, images, captions, hinge)

    def of_device(images, captions, hardest):
        all_images = jax.lax.all_gather(images, mesh.axis_names, tiled=True)
        all_captions = jax.lax.all_gather(captions, mesh.axis_names, tiled=True)
        first = jax.lax.axis_index(mesh.axis_names) * len(images)
        hinge = _Hinge(margin, hardest, first, block)
        loss = _both_ways(images, captions, all_images, all_captions, hinge)
        return jax.lax.psum(loss, mesh.axis_names)

    rows = P(mesh.axis_names)
    sharded = jax.shard_map(
        of_device, mesh=mesh, in_specs=(rows, rows, P()), out_specs=P()
    )
    return sharded(images, captions, jnp.asarray(hardest))


@dataclass(frozen=True)
class _Hinge:
    """What both directions of one device share; see `hinge_loss`."""

    margin: float
    hardest: bool | Bool[Array, ""]
    first: int | Int[Array, ""]  # the batch's row where the device's pairs begin
    block: int

    def costs(
        self,
        similarity: Float[Array, "n b"],
        pairs: Float[Array, " n"],
        excluded: Bool[Array, "n b"],
    ) -> Float[Array, ""]:
        """The sum over the queries, whose pairs have the similarities `pairs`."""
        costs = jax.nn.relu(self.margin + similarity - pairs[:, None])
        costs = jnp.where(excluded, 0, costs)
        return jnp.where(self.hardest, costs.max(axis=1), costs.sum(axis=1)).sum()


def _both_ways(
    images: Float[Array, "n d"],
    captions: Float[Array, "n d"],
    all_images: Float[Array, "b d"],
    all_captions: Float[Array, "b d"],
    hinge: _Hinge,
) -> Float[Array, ""]:
    """The costs of the negatives of one device's images and of its captions."""
    pairs = (images * captions).sum(axis=1)
    return _one_way(images, all_captions, pairs, hinge) + _one_way(
        captions, all_images, pairs, hinge
    )


def _one_way(
    queries: Float[Array, "n d"],
    candidates: Float[Array, "b d"],
    pairs: Float[Array, " n"],
    hinge: _Hinge,
) -> Float[Array, ""]:
    """The costs of the queries' negatives; query i matches candidate first + i."""
    count, total = len(queries), len(candidates)
    blocks = -(-count // max(hinge.block // total, 1))
    rows = -(-count // blocks)

    def block_costs(number):
        # The last block begins early enough to be whole; what it repeats is excluded.
        start = jnp.minimum(number * rows, count - rows)
        query = jax.lax.dynamic_slice_in_dim(queries, start, rows)
        pair = jax.lax.dynamic_slice_in_dim(pairs, start, rows)
        similarity = jnp.matmul(
            query, candidates.T, precision=jax.lax.Precision.HIGHEST
        )
        row = (start + jnp.arange(rows))[:, None]
        own = jnp.arange(total) == hinge.first + row
        return hinge.costs(similarity, pair, own | (row < number * rows))

    if blocks == 1:
        return block_costs(0)
    # Recomputed in the backward pass: no block outlives its turn.
    return jax.lax.map(jax.checkpoint(block_costs), jnp.arange(blocks)).sum()
