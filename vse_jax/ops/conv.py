"""Convolutions of square kernels, as matrix products where they are some.

Channels last. Kernels are [height, width, in, out].
"""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vse_jax.models.initializers import he_normal

# Columns, and output channels, that one of XLA's kernels for CPUs gives to a core, and
# the part of the cores' time from which it beats the other one (docs/performance.md).
_TASK, _ENOUGH = 64, 0.8


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
            pixels = product(x.reshape(-1, x.shape[-1]), kernel[0, 0])
            return pixels.reshape(*x.shape[:-1], -1)
        if self.size == self.stride:
            b, h, w, c = x.shape
            p, h, w = self.size, h // self.size, w // self.size
            patches = x[:, : h * p, : w * p].reshape(b, h, p, w, p, c)
            return jnp.einsum("bhpwqi,pqio->bhwo", patches, kernel)
        if self.groups == 1:
            return convolution(x, kernel, self.stride)
        return _plain(self.stride, x, kernel, groups=self.groups)


@jax.custom_vjp
def product(
    x: Float[Array, "pixels i"], kernel: Float[Array, "i o"]
) -> Float[Array, "pixels o"]:
    """x @ kernel; on CPUs the kernel's gradient has `x` turned over first.

    XLA's faster product sums over rows of the right operand and columns of the left.
    """
    return x @ kernel


def _kernel_gradient_on_cpu(x, cotangent):
    # Without the barrier XLA takes the transposition into the product.
    return jax.lax.optimization_barrier(x.T) @ cotangent


def _product_gradients(residuals, cotangent):
    x, kernel = residuals
    of_kernel = jax.lax.platform_dependent(
        x,
        cotangent,
        cpu=_kernel_gradient_on_cpu,
        default=lambda x, cotangent: x.T @ cotangent,
    )
    return cotangent @ kernel.T, of_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], stride: int
) -> Float[Array, "b oh ow o"]:
    """A convolution padded by k // 2; its gradients suit XLA's kernels for CPUs.

    Those take the layouts of a forward convolution only. XLA brings others to them in
    a program's main function, but not in the functions of its blocks
    (`models/blocks.py`), where JAX's own gradients would be 20 times slower.
    """
    return _forward(x, kernel, stride)[0]


def _forward(x, kernel, stride):
    plain = functools.partial(_plain, stride)
    if stride > 1:
        return plain(x, kernel), (x, kernel)
    by_platform = {"cpu": _by_all_cores, "default": plain}
    y = jax.lax.platform_dependent(x, kernel, **by_platform)
    # Named for `run_block`, which keeps the results of some primitives for gradients:
    # what depends on the platform is none.
    return checkpoint_name(y, "convolution"), (x, kernel)


def _backward(stride, residuals, cotangent):
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_as_forward_convolutions, stride),
        default=functools.partial(_as_jax_does, stride),
    )


convolution.defvjp(_forward, _backward)


def _as_jax_does(stride, x, kernel, cotangent):
    of_both = functools.partial(_plain, stride)
    return jax.vjp(of_both, x, kernel)[1](cotangent)


def _as_forward_convolutions(stride, x, kernel, cotangent):
    size, before = len(kernel), len(kernel) // 2
    sides = x.shape[1:3]
    # How far the cotangent reaches with stride - 1 zeros between its values.
    spread = [(n - 1) * stride + 1 for n in cotangent.shape[1:3]]
    after = [n - reach + before for n, reach in zip(sides, spread, strict=True)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1:
        of_x = _by_all_cores(cotangent, turned)
    else:
        around = [(size - 1 - before, n) for n in after]
        spaced = (stride, stride)
        of_x = _conv(cotangent, turned, padding=around, lhs_dilation=spaced)
    # Its gradient is a convolution, too, with as many columns as the kernel has. The
    # products are of one picture after the other: all of them must be on one device.
    busy = _busy_cores(size, kernel.shape[-1], _cores())
    if busy < _ENOUGH and jax.device_count() == 1:
        return of_x, kernel_gradient_by_products(stride, size, x, cotangent)
    # The channels of x take the place of its batch, and the batch that of channels.
    of_kernel = _conv(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        padding=[(before, size - 1 - n) for n in after],
        rhs_dilation=(stride, stride),
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


def kernel_gradient_by_products(
    stride: int,
    size: int,
    x: Float[Array, "b h w i"],
    cotangent: Float[Array, "b oh ow o"],
) -> Float[Array, "k k i o"]:
    """The gradient of a convolution's kernel, a product for each picture.

    All cores share a product, and rows are copied as they lie: channels come first,
    columns last, and each of a stride's phases is a plane of its own.
    """
    pictures, height, width, channels = cotangent.shape
    before, more = size // 2, (size - 1) // stride  # strides that a window reaches on
    padding = [
        (before, (n + more) * stride - before - side, 0)
        for n, side in zip((height, width), x.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), *padding, (0, 0, 0)])
    planes = x.reshape(pictures, height + more, stride, width + more, stride, -1)
    planes = jax.lax.optimization_barrier(planes.transpose(0, 2, 4, 5, 1, 3))
    places = [(divmod(i, stride), divmod(j, stride)) for i, j in np.ndindex(size, size)]

    def add(total, picture):
        planes, cotangent = picture
        windows = [
            planes[row_phase, column_phase, :, row:, column:][:, :height, :width]
            for (row, row_phase), (column, column_phase) in places
        ]
        windows = jnp.stack(windows).reshape(-1, height * width)
        # Without the barrier XLA would turn them over.
        windows = jax.lax.optimization_barrier(windows)
        pixels = cotangent.reshape(-1, channels)
        sums = jnp.matmul(windows, pixels, preferred_element_type="float32")
        return total + sums, None

    total = jnp.zeros((size * size * planes.shape[3], channels), jnp.float32)
    total, _ = jax.lax.scan(add, total, (planes, cotangent))
    return total.reshape(size, size, -1, channels).astype(x.dtype)


def _by_all_cores(x, kernel):
    """A convolution of stride 1 on a CPU.

    XLA has two kernels. Its first choice gives a core 64 columns and 64 output channels
    at a time, whatever the number of rows and pictures. The other one spreads all of
    them over the cores, and is taken where the output is larger than the input: by a
    column here, which is dropped.
    """
    before, columns = len(kernel) // 2, x.shape[2]
    busy = _busy_cores(columns, kernel.shape[-1], _cores())
    more = int(busy < _ENOUGH and x.dtype == jnp.float32)
    y = _conv(x, kernel, padding=[(before, before), (before, before + more)])
    return y[:, :, :columns]


def _busy_cores(columns: int, channels: int, cores: int) -> float:
    """The part of the cores' time that the first kernel uses."""
    tasks = math.ceil(columns / _TASK) * math.ceil(channels / _TASK)
    longest = math.ceil(tasks / cores) * min(columns, _TASK) * min(channels, _TASK)
    return columns * channels / (cores * longest)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plain(stride, x, kernel, groups=1):
    padding = [(len(kernel) // 2,) * 2] * 2
    return _conv(x, kernel, (stride, stride), padding, groups=groups)


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
