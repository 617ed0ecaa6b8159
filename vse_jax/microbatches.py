"""Large batches in small memory: the towers run on a part of the batch at a time.

The loss needs all embeddings of the batch at once, but little else (GradCache, Gao et
al., 2021): first every microbatch is embedded and only the embeddings are kept; then
the loss and its gradient in them; then each microbatch is embedded again, now with
gradients, which its part of the embeddings' gradient starts. The loss and the gradients
are those of the whole batch, negatives included, at the price of a second forward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any  # nested dicts of arrays: parameters, their gradients, running statistics


def loss_and_gradients(
    embed: Callable[..., tuple[tuple[Array, Array], Tree]],
    loss: Callable[..., Float[Array, ""]],
    params: Tree,
    batch_stats: Tree,
    batch: dict[str, Array],
    count: int,
) -> tuple[Float[Array, ""], Tree, Tree]:
    """Returns loss, gradients in `params` and new batch statistics.

    Args:
        embed: the towers, (params, batch_stats, batch, number of the microbatch) →
            ((images [b, d], captions [b, d]), new batch_stats). Where it normalises by
            batch statistics, they are those of the microbatch's rows (on all devices),
            and running ones are updated `count` times; random numbers should depend on
            the microbatch's number.
        loss: (params, images [b, d], captions [b, d]) → scalar, of the whole batch.
        params: what to differentiate in.
        batch_stats: running statistics.
        batch: arrays whose first dimension is the batch; `count` divides it.
        count: of microbatches; 1: everything at once.
    """
    if count == 1:

        def of_batch(params):
            (images, captions), stats = embed(params, batch_stats, batch, 0)
            return loss(params, images, captions), stats

        (value, stats), gradients = jax.value_and_grad(of_batch, has_aux=True)(params)
        return value, gradients, stats

    # [b, …] → [count, b / count, …]: microbatch i has the rows i, i + count, …, so that
    # each device has a share of every microbatch from the rows that it holds already.
    parts = {
        name: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }
    numbers = jnp.arange(count)

    def forward(stats, part):
        embeddings, stats = embed(params, stats, *part)
        return stats, embeddings

    # Running statistics go from part to part, so that each part updates them once.
    stats, embeddings = jax.lax.scan(forward, batch_stats, (parts, numbers))

    def loss_of_parts(params, *embeddings):
        return loss(
            params, *(x.swapaxes(0, 1).reshape(-1, x.shape[-1]) for x in embeddings)
        )

    value, (gradients, *cotangents) = jax.value_and_grad(
        loss_of_parts, argnums=(0, 1, 2)
    )(params, *embeddings)

    def backward(gradients, part_and_cotangents):
        part, cotangents = part_and_cotangents

        # Every part may start from the first running statistics: embeddings depend on
        # them only where they are frozen, and what this updates is thrown away.
        def embeddings_of(params):
            return embed(params, batch_stats, *part)[0]

        _, gradients_of = jax.vjp(embeddings_of, params)
        (more,) = gradients_of(cotangents)
        return jax.tree.map(jnp.add, gradients, more), None

    gradients, _ = jax.lax.scan(
        backward, gradients, ((parts, numbers), tuple(cotangents))
    )
    return value, gradients, stats
