"""Convolutions of square kernels, as matrix products where they are some.

Channels last. Kernels are [height, width, in, out].
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vse_jax.models.initializers import he_normal


class Conv(nnx.Module):
    """Square convolution without bias; output size = input size / stride, rounded up.

    (Down for patches, stride == kernel size, where an incomplete patch is dropped.)
    """

    def __init__(self, in_channels, out_channels, size, *, stride=1, groups=1, rngs):
        shape = (size, size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(he_normal(shape)(rngs.params(), shape))
        self.size, self.stride, self.groups = size, stride, groups

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        kernel = self.kernel[...].astype(x.dtype)
        # Both special cases are matrix products, which XLA runs faster on CPU than the
        # convolutions that they replace: most of a ResNet-101 are 1×1 convolutions.
        if self.size == 1:
            x = x[:, :: self.stride, :: self.stride]
            # Of two dimensions: the kernel's gradient, which sums over all of the
            # pixels, would copy its operands to make them so.
            product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            return product.reshape(*x.shape[:-1], -1)
        if self.size == self.stride:
            b, h, w, c = x.shape
            p, h, w = self.size, h // self.size, w // self.size
            patches = x[:, : h * p, : w * p].reshape(b, h, p, w, p, c)
            return jnp.einsum("bhpwqi,pqio->bhwo", patches, kernel)
        if self.groups == 1:
            return convolution(x, kernel, self.stride)
        return _conv(x, kernel, *_as_asked(kernel, self.stride), groups=self.groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], stride: int
) -> Float[Array, "b oh ow o"]:
    """A convolution padded by k // 2; its gradients suit XLA's kernels for CPUs.

    Those take the layouts of a forward convolution only. XLA brings others to them in
    a program's main function, but not in the functions of its blocks
    (`models/blocks.py`), where JAX's own gradients would be 20 times slower.
    """
    return _conv(x, kernel, *_as_asked(kernel, stride))


def _forward(x, kernel, stride):
    return _conv(x, kernel, *_as_asked(kernel, stride)), (x, kernel)


def _backward(stride, residuals, cotangent):
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_as_forward_convolutions, stride),
        default=functools.partial(_as_jax_does, stride),
    )


convolution.defvjp(_forward, _backward)


def _as_jax_does(stride, x, kernel, cotangent):
    strides, padding = _as_asked(kernel, stride)
    of_both = functools.partial(_conv, strides=strides, padding=padding)
    return jax.vjp(of_both, x, kernel)[1](cotangent)


def _as_forward_convolutions(stride, x, kernel, cotangent):
    size, before = len(kernel), len(kernel) // 2
    sides = x.shape[1:3]
    # How far the cotangent reaches with stride - 1 zeros between its values.
    spread = [(n - 1) * stride + 1 for n in cotangent.shape[1:3]]
    after = [n - reach + before for n, reach in zip(sides, spread, strict=True)]
    of_x = _conv(
        cotangent,
        kernel[::-1, ::-1].swapaxes(2, 3),
        padding=[(size - 1 - before, n) for n in after],
        lhs_dilation=(stride, stride),
    )
    # The channels of x take the place of its batch, and the batch that of channels.
    of_kernel = _conv(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        padding=[(before, size - 1 - n) for n in after],
        rhs_dilation=(stride, stride),
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


def _as_asked(kernel, stride):
    """(strides, padding) of `convolution`."""
    return (stride, stride), [(kernel.shape[0] // 2,) * 2] * 2


def _conv(x, kernel, strides=(1, 1), padding=(), *, groups=1, **dilation):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        **dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
