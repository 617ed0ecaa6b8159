"""What each device computes for the rows of the batch that it holds, and sends nothing.

Where a program is for several devices, XLA's partitioner chooses for every operation
where it is computed. Of two kinds of operations it chooses badly: a grouped convolution
gathers the whole batch on every device, and a loop over the positions of sequences sums
the gradient of its weights over all devices at each position.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

T = TypeVar("T")


def on_accelerators(mesh: Mesh | None) -> bool:
    """Whether a program is traced for GPUs or TPUs; None: a CPU."""
    return mesh is not None and mesh.devices.flat[0].platform != "cpu"


def per_device(
    mesh: Mesh | None, function: Callable[..., T], params: Any, *rows: jax.Array
) -> T:
    """Returns function(params, *rows), whose results have the same rows.

    The gradients in `params` are summed over the devices once, at the end.

    Args:
        mesh: over whose devices the rows are spread; None: all are here. Where it does
            not divide them, every device computes all of them.
        function: computes each device's rows by themselves.
        params: arrays that all devices hold.
        rows: arrays whose first dimension is spread over the devices.
    """
    if mesh is None or mesh.size == 1 or rows[0].shape[0] % mesh.size:
        return function(params, *rows)
    spread = P(mesh.axis_names)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), *[spread] * len(rows)),
        out_specs=spread,
        check_vma=False,  # a loop's first state is the same everywhere, its next is not
    )(params, *rows)
