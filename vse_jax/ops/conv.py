"""Convolutions of square kernels, as the platforms compute them best.

Channels last; kernels are [height, width, in, out]. `conv2d_reference` says what all of
this computes. docs/lab/ has what each step gained.

On CPUs:

- Of 1×1 kernels and of patches a convolution is a matrix product. (Most of a ResNet-101
  are 1×1 convolutions.)
- XLA's fast kernels take the layouts of a forward convolution only. It brings others to
  them in a program's main function, but not in the functions of its blocks (blocks.py).
  There JAX's own gradients would be 20 times slower; ours are forward convolutions.
- XLA's first choice of a kernel gives one core 64 columns and 64 output channels at a
  time. Where that is all there is, the other cores would wait: see `_in_one_task`.

What is traced depends on the number of devices in one place, `_backward_on_cpu`.

Small groups of channels would leave most of a TPU's matrix unit empty, and XLA's kernel
for groups on CPUs takes 3 to 10 times as long: `merged_groups` computes several as one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vse_jax.ops.per_device import per_device
from vse_jax.ops.plain import is_plain

_TASK = 64  # columns, and output channels, that XLA's kernel gives to a core
_LANES = 128  # side of a TPU's matrix unit


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "k k i_of_group o"],
    stride: int = 1,
    groups: int = 1,
    mesh: Mesh | None = None,
) -> Float[Array, "b oh ow o"]:
    """Convolves images; the output's size is the input's / stride, rounded up.

    It is rounded down for patches, kernels as large as the stride: an incomplete patch
    is dropped.

    Args:
        x: images.
        kernel: of all groups, one behind the other.
        stride: in both dimensions.
        groups: of channels, each convolved by itself.
        mesh: over whose devices the images are spread; None: all are here.
    """
    if is_plain():
        return conv2d_reference(x, kernel, stride, groups)
    b, h, w, c = x.shape
    size = len(kernel)
    plain = functools.partial(conv2d_reference, stride=stride, groups=groups)
    if groups > 1:
        merged = functools.partial(merged_groups, stride=stride, groups=groups)

        def convolve(kernel, x):
            return _by_platform(x, kernel, cpu=merged, tpu=merged, default=plain)

        return per_device(mesh, convolve, kernel, x)
    if size == 1:
        x, kernel = x[:, ::stride, ::stride], kernel[0, 0]
        return _by_platform(x, kernel, cpu=_pixels_matmul, default=_matmul)
    if size == stride:
        h, w = h // size, w // size
        patches = x[:, : h * size, : w * size].reshape(b, h, size, w, size, c)
        return jnp.einsum("bhpwqi,pqio->bhwo", patches, kernel)
    return _by_platform(x, kernel, cpu=_on_cpu(stride), default=plain)


def conv2d_reference(x, kernel, stride=1, groups=1):
    """The same as JAX has it."""
    before = 0 if len(kernel) == stride else len(kernel) // 2
    padding = [(before, before)] * 2
    return _lax_conv(x, kernel, (stride, stride), padding, feature_group_count=groups)


_lax_conv = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def _by_platform(x, kernel, **ways):
    """The convolution that a platform takes, and its gradients.

    They are put together here: JAX would keep for a gradient what any of the platforms
    needs, which is zeros on all others.
    """

    def forward(x, kernel):
        y = jax.lax.platform_dependent(x, kernel, **ways)
        # `Blocks` keeps the results of some primitives for gradients; what depends on
        # the platform is none of them, but a name is.
        return checkpoint_name(y, "convolution"), (x, kernel)

    def gradients(of, residuals, cotangent):
        return jax.vjp(of, *residuals)[1](cotangent)

    def backward(residuals, cotangent):
        of = {name: functools.partial(gradients, way) for name, way in ways.items()}
        return jax.lax.platform_dependent(residuals, cotangent, **of)

    convolve = jax.custom_vjp(lambda x, kernel: forward(x, kernel)[0])
    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


# ---- 1×1 -----------------------------------------------------------------------------


def _matmul(x, kernel):
    return jnp.einsum("bhwi,io->bhwo", x, kernel)


def _pixels_matmul(x, kernel):
    # Of two dimensions: the kernel's gradient, which sums over all of the pixels, would
    # copy its operands to make them so.
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def matmul(
    x: Float[Array, "pixels i"], kernel: Float[Array, "i o"]
) -> Float[Array, "pixels o"]:
    """x @ kernel, whose kernel's gradient transposes x explicitly.

    XLA's faster product on CPUs sums over rows of the right operand and columns of the
    left; without a barrier it would take the transposition into the product.
    """
    return x @ kernel


def _matmul_gradients(residuals, cotangent):
    x, kernel = residuals
    return cotangent @ kernel.T, jax.lax.optimization_barrier(x.T) @ cotangent


matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_gradients)


# ---- Groups --------------------------------------------------------------------------


def merged_groups(x, kernel, stride=1, groups=1):
    """A grouped convolution that computes several groups of few channels as one.

    As many as fill a side of the matrix unit; their kernel is block diagonal, and what
    its zeros add is nothing.
    """
    size, _, inputs, outputs = kernel.shape
    together = max(_LANES // max(inputs, outputs // groups), 1)
    while groups % together:
        together -= 1
    if 2 * inputs >= _LANES or together == 1:
        return conv2d_reference(x, kernel, stride, groups)
    merged = groups // together
    blocks = kernel.reshape(size, size, inputs, merged, together, -1)
    own = jnp.eye(together, dtype=kernel.dtype)
    kernel = jnp.einsum("pqimgo,jg->pqjimgo", blocks, own)
    kernel = kernel.reshape(size, size, together * inputs, outputs)
    return conv2d_reference(x, kernel, stride, merged)


# ---- Larger kernels, on CPUs ---------------------------------------------------------


def _on_cpu(stride):
    @jax.custom_vjp
    def convolve(x, kernel):
        if stride == 1:
            return _of_stride_1(x, kernel)
        return conv2d_reference(x, kernel, stride)

    convolve.defvjp(
        lambda *x: (convolve(*x), x),
        lambda x, cotangent: _backward_on_cpu(stride, *x, cotangent),
    )
    return convolve


def _in_one_task(columns: int, channels: int) -> bool:
    """Whether XLA's first choice of a kernel would leave all but one core idle."""
    return columns <= _TASK and channels <= _TASK


def _of_stride_1(x, kernel):
    before, columns = len(kernel) // 2, x.shape[2]
    # XLA's other kernel spreads rows and images over the cores. It is taken where the
    # output is larger than the input: by a column here, which is dropped.
    one_task = _in_one_task(columns, kernel.shape[-1])
    more = int(one_task and x.dtype == jnp.float32)
    padding = [(before, before), (before, before + more)]
    return _lax_conv(x, kernel, (1, 1), padding)[:, :, :columns]


def _backward_on_cpu(stride, x, kernel, cotangent):
    size, before = len(kernel), len(kernel) // 2
    # How far the cotangent reaches with stride - 1 zeros between its values.
    spread = [(n - 1) * stride + 1 for n in cotangent.shape[1:3]]
    after = [n - m + before for n, m in zip(x.shape[1:3], spread, strict=True)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1:
        of_x = _of_stride_1(cotangent, turned)
    else:
        around = [(size - 1 - before, n) for n in after]
        dilation = (stride, stride)
        of_x = _lax_conv(cotangent, turned, (1, 1), around, lhs_dilation=dilation)
    # The kernel's gradient is a convolution with as many columns as the kernel has. Its
    # alternative takes one image after the other: all of them must be on one device.
    if _in_one_task(size, kernel.shape[-1]) and jax.device_count() == 1:
        return of_x, kernel_gradient_by_matmul(stride, size, x, cotangent)
    # The channels of x take the place of its batch, and the batch that of channels.
    of_kernel = _lax_conv(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        [(before, size - 1 - n) for n in after],
        rhs_dilation=(stride, stride),
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


def kernel_gradient_by_matmul(
    stride: int,
    size: int,
    x: Float[Array, "b h w i"],
    cotangent: Float[Array, "b oh ow o"],
) -> Float[Array, "k k i o"]:
    """The gradient of a convolution's kernel, a matrix product for each image.

    All cores share a product, and rows are copied as they lie: channels come first,
    columns last, and each of a stride's phases is a plane of its own.
    """
    images, height, width, channels = cotangent.shape
    before, more = size // 2, (size - 1) // stride  # strides that a window reaches on
    padding = [
        (before, (n + more) * stride - before - side, 0)
        for n, side in zip((height, width), x.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), *padding, (0, 0, 0)])
    planes = x.reshape(images, height + more, stride, width + more, stride, -1)
    planes = jax.lax.optimization_barrier(planes.transpose(0, 2, 4, 5, 1, 3))
    offsets = [
        (divmod(i, stride), divmod(j, stride)) for i, j in np.ndindex(size, size)
    ]

    def add(total, image):
        planes, cotangent = image
        windows = [
            planes[row_phase, column_phase, :, row:, column:][:, :height, :width]
            for (row, row_phase), (column, column_phase) in offsets
        ]
        windows = jnp.stack(windows).reshape(-1, height * width)
        # Without the barrier XLA would transpose them.
        windows = jax.lax.optimization_barrier(windows)
        pixels = cotangent.reshape(-1, channels)
        sums = jnp.matmul(windows, pixels, preferred_element_type="float32")
        return total + sums, None

    total = jnp.zeros((size * size * planes.shape[3], channels), jnp.float32)
    total, _ = jax.lax.scan(add, total, (planes, cotangent))
    return total.reshape(size, size, -1, channels).astype(x.dtype)
