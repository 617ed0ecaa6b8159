"""The losses by their config name, and how one runs over a global batch.

A loss is called twice for each batch, for the images against all captions and for the
captions against all images, on blocks of queries: it never sees the whole matrix of
similarities, which may not fit one device.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vse_jax.base.registry import Registry
from vse_jax.config import LOSS_CLASSES

# ---- The losses ----------------------------------------------------------------------


@runtime_checkable
class Loss(Protocol):
    """What a loss does; its parameters (`nnx.Param`) are trained with the towers'."""

    def __call__(
        self,
        similarity: Float[Array, "n b"],
        positives: Float[Array, " n"],
        negatives: Bool[Array, "n b"],
        epoch: int | Int[Array, ""],
    ) -> Float[Array, " n"]:
        """The loss of each of n queries, to be summed.

        Args:
            similarity: of the queries and all b candidates of the batch.
            positives: the similarity of each query and its positive, which is one of
                the candidates.
            negatives: which candidates are negatives of the query.
            epoch: from 0.
        """
        ...


class TripletLoss(nnx.Module):
    """The triplet hinge losses VSE0 and VSE++ (paper, Eq. 5), summed over the batch.

    A negative costs max(0, margin + its similarity − the positive's). For
    `warmup_epochs` all negatives count (VSE0), then a query's most violating one only
    (VSE++).
    """

    def __init__(self, margin: float, warmup_epochs: int):
        self.margin = margin
        self.warmup_epochs = warmup_epochs

    def __call__(self, similarity, positives, negatives, epoch):
        costs = jax.nn.relu(self.margin + similarity - positives[:, None])
        costs = jnp.where(negatives, costs, 0)
        hardest = epoch >= self.warmup_epochs
        return jnp.where(hardest, costs.max(axis=1), costs.sum(axis=1))


class InfoNCELoss(nnx.Module):
    """CLIP's symmetric cross entropy (Radford et al., 2021), a mean over the batch.

    Similarities are divided by a temperature that is learned; it starts at 0.07 and
    stays above 0.01, as CLIP's does.
    """

    def __init__(self):
        self.log_scale = nnx.Param(np.log(np.float32(1 / 0.07)))

    def __call__(self, similarity, positives, negatives, epoch):
        scale = jnp.exp(jnp.minimum(self.log_scale[...], np.log(100.0)))
        positive = scale * positives
        others = jnp.where(negatives, scale * similarity, -jnp.inf)
        logits = jnp.concatenate([positive[:, None], others], axis=1)
        # Both directions count half.
        cross_entropy = jax.nn.logsumexp(logits, axis=1) - positive
        return cross_entropy / (2 * similarity.shape[1])


class SigmoidLoss(nnx.Module):
    """Each pair of the batch as a yes or no (SigLIP: Zhai et al., 2023), per image.

    The logit of a pair is scale · similarity + bias; both are learned and start at 10
    and −10, as SigLIP's do.
    """

    def __init__(self):
        self.log_scale = nnx.Param(np.log(np.float32(10)))
        self.bias = nnx.Param(np.float32(-10))

    def __call__(self, similarity, positives, negatives, epoch):
        scale, bias = jnp.exp(self.log_scale[...]), self.bias[...]
        wrong = jax.nn.softplus(scale * similarity + bias)
        right = jax.nn.softplus(-(scale * positives + bias))
        costs = right + jnp.where(negatives, wrong, 0).sum(axis=1)
        # Both directions see each pair.
        return costs / (2 * similarity.shape[1])


LOSSES = Registry(
    "loss",
    LOSS_CLASSES,
    nnx.Module,
    {"__call__": ("similarity", "positives", "negatives", "epoch")},
)

# ---- Over the global batch, on all devices, in blocks that fit -----------------------

# Similarities that one device holds at a time (64 MB); a whole batch of 4096.
_BLOCK = 2**24


class _Pairs(NamedTuple):
    """Embeddings and image ids of n pairs: a device's, or all of the batch."""

    images: Float[Array, "n d"]
    captions: Float[Array, "n d"]
    ids: Int[Array, " n"] | None


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
    """Returns the loss of a batch of positive pairs, in both directions.

    Every other caption of the batch is a negative of an image and every other image one
    of a caption.

    Each device compares its own images with all captions and its own captions with all
    images. Doing both products, instead of one whose columns lie on all devices, keeps
    everything but the embeddings local, so that batch² / devices similarities are the
    most that a device holds; of those, `block` at a time.

    Args:
        loss: see `Loss`.
        images: embeddings; row i is the positive of row i of `captions`.
        captions: embeddings.
        epoch: from 0; may be traced.
        image_ids: pairs with equal ones are no negatives of each other; None: all are.
        mesh: over whose devices the rows are spread; None: all are here.
        block: the number of similarities to hold at a time, at least a row of them.
    """
    pairs = _Pairs(images, captions, image_ids)
    if mesh is None:
        return _device_loss(loss, pairs, pairs, 0, epoch, block)
    definition, params = nnx.split(loss)

    def of_device(params, epoch, own):
        batch = jax.tree.map(
            lambda x: jax.lax.all_gather(x, mesh.axis_names, tiled=True), own
        )
        first = jax.lax.axis_index(mesh.axis_names) * len(own.images)
        loss = nnx.merge(definition, params)
        part = _device_loss(loss, own, batch, first, epoch, block)
        return jax.lax.psum(part, mesh.axis_names)

    rows = P(mesh.axis_names)
    sharded = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(), P(), rows), out_specs=P()
    )
    return sharded(params, jnp.asarray(epoch), pairs)


def _device_loss(
    loss: nnx.Module,
    own: _Pairs,
    batch: _Pairs,
    first: int | Int[Array, ""],
    epoch: int | Int[Array, ""],
    block: int,
) -> Float[Array, ""]:
    """The loss of one device's pairs, rows `first` … of the batch; see `batch_loss`."""
    positives = (own.images * own.captions).sum(axis=1)

    def directional(queries, candidates):
        """The sum over the queries; the positive of query i is candidate first + i."""
        count, total = len(queries), len(candidates)
        blocks = -(-count // max(block // total, 1))
        rows = -(-count // blocks)

        def block_loss(number):
            # All blocks have equally many rows: the last one overlaps the one before
            # it, and its repeated rows are masked.
            start = jnp.minimum(number * rows, count - rows)

            def of_block(x):
                return jax.lax.dynamic_slice_in_dim(x, start, rows)

            similarity = jnp.matmul(
                of_block(queries), candidates.T, precision=jax.lax.Precision.HIGHEST
            )
            row = start + jnp.arange(rows)
            negatives = jnp.arange(total) != first + row[:, None]
            if own.ids is not None:
                negatives &= of_block(own.ids)[:, None] != batch.ids
            losses = loss(similarity, of_block(positives), negatives, epoch)
            return jnp.where(row < number * rows, 0, losses).sum()

        if blocks == 1:
            return block_loss(0)
        # Recomputed in the backward pass: only one block is in memory at a time.
        return jax.lax.map(jax.checkpoint(block_loss), jnp.arange(blocks)).sum()

    return directional(own.images, batch.captions) + directional(
        own.captions, batch.images
    )
