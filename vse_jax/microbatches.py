"""Large batches in small memory: the towers run on a part of the batch at a time.

The loss needs all embeddings of the batch at once, but little else (GradCache, Gao et
al., 2021): first every microbatch is embedded and only the embeddings are kept; then
the loss and its gradient in them; then each microbatch is embedded again, now with
gradients, which its part of the embeddings' gradient starts. The loss and the gradients
are those of the whole batch, negatives included, at the price of a second forward pass.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Tree = Any  # nested dicts of arrays: parameters, their gradients, running statistics
Embeddings = tuple[Float[Array, "b d"], Float[Array, "b d"]]  # images, captions


@runtime_checkable
class Embed(Protocol):
    """The towers: the embeddings of a microbatch and the new running statistics."""

    def __call__(
        self,
        params: Tree,
        batch_stats: Tree,
        batch: dict[str, Array],
        number: int | Int[Array, ""],
    ) -> tuple[Embeddings, Tree]: ...


@runtime_checkable
class Loss(Protocol):
    """The loss of the embeddings of a whole batch; it may have parameters, too."""

    def __call__(
        self,
        params: Tree,
        images: Float[Array, "b d"],
        captions: Float[Array, "b d"],
        /,
    ) -> Float[Array, ""]: ...


class _Microbatch(NamedTuple):
    """Its rows and its number; stacked along a leading axis: all of them."""

    batch: dict[str, Array]
    number: Array


def loss_and_gradients(
    embed: Embed,
    loss: Loss,
    params: Tree,
    batch_stats: Tree,
    batch: dict[str, Array],
    count: int,
) -> tuple[Float[Array, ""], Tree, Tree]:
    """Returns loss, gradients in `params` and new batch statistics.

    Args:
        embed: the towers. Where it normalises by batch statistics, they are those of
            the microbatch's rows (on all devices), and running ones are updated `count`
            times; random numbers should depend on the microbatch's number.
        loss: of the embeddings of the whole batch.
        params: what to differentiate in.
        batch_stats: running statistics.
        batch: arrays whose first dimension is the batch; `count` divides it.
        count: of microbatches; 1: everything at once.
    """
    if count == 1:
        return _at_once(embed, loss, params, batch_stats, batch)
    parts = _Microbatch(
        {name: _split(x, count) for name, x in batch.items()}, jnp.arange(count)
    )

    # Running statistics go from part to part, so that each part updates them once. The
    # second pass may start every part from the first ones: embeddings depend on running
    # statistics only where these are frozen, and what it updates is thrown away.
    def forward(stats, part):
        embeddings, stats = embed(params, stats, part.batch, part.number)
        return stats, embeddings

    def backward(gradients, part_and_cotangents):
        part, cotangents = part_and_cotangents

        def embeddings_of(params):
            embeddings, _ = embed(params, batch_stats, part.batch, part.number)
            return embeddings

        _, gradients_of = jax.vjp(embeddings_of, params)
        (more,) = gradients_of(cotangents)
        return jax.tree.map(jnp.add, gradients, more), None

    def loss_of_parts(params, images, captions):
        return loss(params, _join(images), _join(captions))

    stats, embeddings = jax.lax.scan(forward, batch_stats, parts)
    value, (own, *cotangents) = jax.value_and_grad(loss_of_parts, argnums=(0, 1, 2))(
        params, *embeddings
    )
    gradients, _ = jax.lax.scan(backward, own, (parts, tuple(cotangents)))
    return value, gradients, stats


def _at_once(
    embed: Embed, loss: Loss, params: Tree, batch_stats: Tree, batch: dict[str, Array]
) -> tuple[Float[Array, ""], Tree, Tree]:
    """`loss_and_gradients` of a single microbatch: one pass."""

    def of_batch(params):
        (images, captions), stats = embed(params, batch_stats, batch, 0)
        return loss(params, images, captions), stats

    (value, stats), gradients = jax.value_and_grad(of_batch, has_aux=True)(params)
    return value, gradients, stats


def _split(x: Array, count: int) -> Array:
    """[b, …] → [count, b / count, …]: part i holds the rows i, i + count, …

    Taking every count-th row gives each device a share of every part from the rows that
    it holds already.
    """
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _join(parts: Array) -> Array:
    """The inverse of `_split`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
