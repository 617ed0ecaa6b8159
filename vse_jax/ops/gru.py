"""The recurrence of GRUs, with a gradient for accelerators.

A position is so little work that an accelerator spends its time on starting operations.
There the loop of the gradient only carries the state's cotangent back: all that does
not depend on it is computed for all positions at once. On a CPU, where a product takes
longer than its start, computing the gates twice would cost more.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vse_jax.ops.per_device import on_accelerators


def recur(
    inputs: Float[Array, "t g #b gates"],
    mask: Bool[Array, "t g b"],
    kernel: Float[Array, "g h gates"],
    bias: Float[Array, "g 1 gates"],
    mesh: Mesh | None = None,
) -> Float[Array, "t g b h"]:
    """The states of g GRUs after each position, the first state being 0.

    Args:
        inputs: their share of the gates, which are reset, update and new, h each.
        mask: the real positions; at others the state stays, and 0 is returned.
        kernel, bias: of the state's share; the kernel's dtype is that of the products.
        mesh: of the devices that compute it; None: a CPU.
    """
    if not on_accelerators(mesh):
        return recur_reference(inputs, mask, kernel, bias)
    # Where the mask is False the update gate is 1, so that the loop needs no mask.
    valid, size = mask[..., None], kernel.shape[1]
    stay = jnp.where(jnp.arange(3 * size) // size == 1, jnp.inf, 0)
    states = _recur(jnp.where(valid, inputs, stay), kernel, bias)
    return jnp.where(valid, states, 0)


def recur_reference(inputs, mask, kernel, bias):
    """The same with JAX's own gradient."""

    def step(hidden, position):
        inputs, valid = position
        after, valid = _next(inputs, hidden, kernel, bias), valid[..., None]
        return jnp.where(valid, after, hidden), jnp.where(valid, after, 0)

    start = jnp.zeros((*mask.shape[1:], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, start, (inputs, mask))[1]


@jax.custom_vjp
def _recur(inputs, kernel, bias):
    def step(hidden, inputs):
        hidden = _next(inputs, hidden, kernel, bias)
        return hidden, hidden

    start = jnp.zeros((*inputs.shape[1:3], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, start, inputs)[1]


def _next(inputs, hidden, kernel, bias):
    _, update, new, _ = _gates(inputs, _product(hidden, kernel) + bias)
    return (1 - update) * new + update * hidden


def _gates(x, h):
    """Reset, update and new gate, and the state's share of the new one."""
    x_reset, x_update, x_new = jnp.split(x, 3, axis=-1)
    h_reset, h_update, h_new = jnp.split(h, 3, axis=-1)
    reset = jax.nn.sigmoid(x_reset + h_reset)
    new = jnp.tanh(x_new + reset * h_new)
    return reset, jax.nn.sigmoid(x_update + h_update), new, h_new


def _product(x, kernel):
    return jnp.matmul(
        x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32
    )


def _forward(*arguments):
    states = _recur(*arguments)
    return states, (*arguments, states)


def _backward(residuals, cotangents):
    inputs, kernel, bias, states = residuals
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    reset, update, new, h_new = _gates(inputs, _product(before, kernel) + bias)
    # The gates' gradients are these times the state's cotangent.
    of_new = (1 - update) * (1 - new**2)
    of_reset = of_new * h_new * reset * (1 - reset)
    of_update = (before - new) * update * (1 - update)
    of_x = of_reset, of_update, of_new
    of_h = of_reset, of_update, of_new * reset
    back = [k.swapaxes(1, 2) for k in jnp.split(kernel, 3, axis=-1)]

    def step(later, position):
        cotangent, of_h, update = position
        total = later + cotangent
        earlier = total * update
        for factor, k in zip(of_h, back, strict=True):
            earlier += _product(total * factor, k)
        return earlier, total

    positions = cotangents, of_h, update
    _, totals = jax.lax.scan(step, jnp.zeros_like(states[0]), positions, reverse=True)
    of_inputs = jnp.concatenate([totals * factor for factor in of_x], axis=-1)
    gates = jnp.concatenate([totals * factor for factor in of_h], axis=-1)
    of_kernel = jnp.einsum(
        "tgbh,tgbn->ghn",
        before.astype(kernel.dtype),
        gates.astype(kernel.dtype),
        preferred_element_type=jnp.float32,
    )
    of_bias = gates.sum(axis=(0, 2))[:, None]
    return of_inputs, of_kernel.astype(kernel.dtype), of_bias


_recur.defvjp(_forward, _backward)
