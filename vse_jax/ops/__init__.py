"""What is tuned to a device: the only place where a platform decides how to compute.

Beside each operation stands its plain version in a few lines of jax.numpy,
NAME_reference: it says what is computed, and the tests compare the two.
"""

from vse_jax.ops.blocks import Blocks, place
from vse_jax.ops.conv import conv2d
from vse_jax.ops.gru import recur
from vse_jax.ops.memory import disable_malloc_trim
from vse_jax.ops.packing import attends_in_rows, pack, unpack
from vse_jax.ops.per_device import per_device
from vse_jax.ops.plain import plain
from vse_jax.ops.sorted_pool import sorted_pool

__all__ = [
    "Blocks",
    "attends_in_rows",
    "conv2d",
    "disable_malloc_trim",
    "pack",
    "per_device",
    "place",
    "plain",
    "recur",
    "sorted_pool",
    "unpack",
]
