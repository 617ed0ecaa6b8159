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

# (params, batch statistics, batch, number of the microbatch)
#   → ((images [b, d], captions [b, d]), new batch statistics)
Embed = Callable[[Any, Any, Any, Any], tuple[tuple[Array, Array], Any]]
Loss = Callable[[Float[Array, "b d"], Float[Array, "b d"]], Float[Array, ""]]


def loss_and_gradients(
    embed: Embed,
    loss: Loss,
    params: Any,
    batch_stats: Any,
    batch: dict[str, Array],
    count: int,
) -> tuple[Float[Array, ""], Any, Any]:
    """Returns loss, gradients in `params` and new batch statistics.

    Args:
      embed: the towers. Where it normalises by batch statistics, they are those of the
        microbatch's rows (on all devices), and running ones are updated `count` times;
        random numbers should depend on the microbatch's number.
      loss: of the embeddings of the whole batch.
      params: what to differentiate in.
      batch_stats: running statistics.
      batch: arrays whose first dimension is the batch; `count` divides it.
      count: of microbatches; 1: everything at once.
    """
    if count == 1:

        def whole(params):
            embeddings, stats = embed(params, batch_stats, batch, 0)
            return loss(*embeddings), stats

        (value, stats), gradients = jax.value_and_grad(whole, has_aux=True)(params)
        return value, gradients, stats

    numbers = jnp.arange(count)
    parts = jax.tree.map(lambda x: _split(x, count), batch)

    def forward(stats, part):
        embeddings, stats = embed(params, stats, *part)
        return stats, embeddings

    stats, embeddings = jax.lax.scan(forward, batch_stats, (parts, numbers))
    value, cotangents = jax.value_and_grad(lambda x: loss(*map(_join, x)))(embeddings)

    def backward(gradients, part):
        *part, cotangent = part
        _, vjp = jax.vjp(lambda p: embed(p, batch_stats, *part)[0], params)
        return jax.tree.map(jnp.add, gradients, *vjp(cotangent)), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    gradients, _ = jax.lax.scan(backward, nothing, (parts, numbers, cotangents))
    return value, gradients, stats


def _split(x, count):
    """[b, …] → [count, b / count, …]: part i holds the rows i, i + count, …

    Taking every count-th row gives each device a share of every part from the rows that
    it holds already.
    """
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _join(parts):
    """The inverse of `_split`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
