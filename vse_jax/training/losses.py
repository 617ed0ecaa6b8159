"""The triplet hinge losses VSE0 and VSE++, blockwise over the global batch."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

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
        return _local_loss(
            images, captions, images, captions, 0, margin, hardest, block
        )

    def local(images, captions, hardest):
        everyones = (
            jax.lax.all_gather(x, mesh.axis_names, tiled=True)
            for x in (images, captions)
        )
        first = jax.lax.axis_index(mesh.axis_names) * len(images)
        loss = _local_loss(images, captions, *everyones, first, margin, hardest, block)
        return jax.lax.psum(loss, mesh.axis_names)

    rows = P(mesh.axis_names)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, P()), out_specs=P())
    return sharded(images, captions, jnp.asarray(hardest))


def _local_loss(images, captions, all_images, all_captions, first, *rest):
    """Both directions, of the pairs first, first + 1, … of the batch."""
    pairs = (images * captions).sum(axis=1)
    return _one_way(images, all_captions, pairs, first, *rest) + _one_way(
        captions, all_images, pairs, first, *rest
    )


def _one_way(queries, candidates, pairs, first, margin, hardest, block):
    """The costs of the queries' negatives; query i matches candidate first + i."""
    count, total = len(queries), len(candidates)
    # The most rows that divide the queries evenly and fit into a block.
    most = max(block // total, 1)
    rows = max(n for n in range(1, min(most, count) + 1) if count % n == 0)

    def block_loss(start):
        query, pair = (
            jax.lax.dynamic_slice_in_dim(x, start, rows) for x in (queries, pairs)
        )
        similarity = jnp.matmul(
            query, candidates.T, precision=jax.lax.Precision.HIGHEST
        )
        same = jnp.arange(total) == (first + start + jnp.arange(rows))[:, None]
        cost = jnp.where(same, 0, jax.nn.relu(margin + similarity - pair[:, None]))
        return jnp.where(hardest, cost.max(axis=1), cost.sum(axis=1)).sum()

    if rows == count:
        return block_loss(0)
    # Recomputed in the backward pass: no block outlives its turn.
    starts = jnp.arange(0, count, rows)
    return jax.lax.map(jax.checkpoint(block_loss), starts).sum()
