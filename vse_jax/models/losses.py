"""The losses by their config name: what a query's similarities to a batch cost.

A loss is asked twice for each batch, for the images against all captions and for the
captions against all images, and in blocks of queries (training/losses.py): it never
sees the whole matrix of similarities, which may not fit one device.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vse_jax.base.registry import Registry


@runtime_checkable
class Loss(Protocol):
    """What a loss does; its parameters (`nnx.Param`) are trained with the towers'."""

    def __call__(
        self,
        similarity: Float[Array, "n b"],
        pairs: Float[Array, " n"],
        negatives: Bool[Array, "n b"],
        epoch: int | Int[Array, ""],
    ) -> Float[Array, " n"]:
        """The cost of each of n queries, to be summed.

        Args:
            similarity: of the queries and all b candidates of the batch.
            pairs: of each query and its match, which is one of the candidates.
            negatives: the candidates that are none of the query's matches.
            epoch: from 0.
        """
        ...


class TripletLoss(nnx.Module):
    """The triplet hinge losses VSE0 and VSE++ (paper, Eq. 5), summed over the batch.

    A negative costs max(0, margin + its similarity − the pair's). For
    `warmup_epochs` all negatives count (VSE0), then a query's most violating one only
    (VSE++).
    """

    def __init__(self, margin: float, warmup_epochs: int):
        self.margin = margin
        self.warmup_epochs = warmup_epochs

    def __call__(self, similarity, pairs, negatives, epoch):
        costs = jax.nn.relu(self.margin + similarity - pairs[:, None])
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

    def __call__(self, similarity, pairs, negatives, epoch):
        scale = jnp.exp(jnp.minimum(self.log_scale[...], np.log(100.0)))
        own = scale * pairs
        others = jnp.where(negatives, scale * similarity, -jnp.inf)
        every = jnp.concatenate([own[:, None], others], axis=1)
        # Both directions count half.
        return (jax.nn.logsumexp(every, axis=1) - own) / (2 * similarity.shape[1])


class SigmoidLoss(nnx.Module):
    """Each pair of the batch as a yes or no (SigLIP: Zhai et al., 2023), per image.

    The logit of a pair is scale · similarity + bias; both are learned and start at 10
    and −10, as SigLIP's do.
    """

    def __init__(self):
        self.log_scale = nnx.Param(np.log(np.float32(10)))
        self.bias = nnx.Param(np.float32(-10))

    def __call__(self, similarity, pairs, negatives, epoch):
        scale, bias = jnp.exp(self.log_scale[...]), self.bias[...]
        wrong = jax.nn.softplus(scale * similarity + bias)
        right = jax.nn.softplus(-(scale * pairs + bias))
        costs = right + jnp.where(negatives, wrong, 0).sum(axis=1)
        # Both directions see each pair.
        return costs / (2 * similarity.shape[1])


LOSSES: Registry[nnx.Module] = Registry(
    "loss",
    {"triplet": TripletLoss, "infonce": InfoNCELoss, "sigmoid": SigmoidLoss},
    nnx.Module,
    {"__call__": ("similarity", "pairs", "negatives", "epoch")},
)
