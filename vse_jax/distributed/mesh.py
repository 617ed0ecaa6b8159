"""The device mesh (slice, data, fsdp) and where every array lives on it.

The devices of a slice send each other what they compute over fast links (a TPU slice,
the GPUs of one host); a slower network joins the slices. The batch is spread over all
of them, and each slice holds the whole state: gradients are summed inside a slice
first, and only a device's shard of them crosses.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vse_jax.base.errors import InputError
from vse_jax.config import LOSS_CLASSES, Config, with_fields

AXES = ("slice", "data", "fsdp")
_SHARD_FROM = 2**16  # elements; smaller leaves are replicated: not worth a collective


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh of `devices` (default: all) by `config.mesh`; -1: all that are left.

    Raises:
        InputError: the axes do not multiply to the number of devices, or the devices
            are of another number of slices.
    """
    devices = devices or jax.devices()
    count = len(devices)
    # CPUs have no slices; config.mesh.slice makes some of them, to try the axis.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    wanted = dataclasses.asdict(config.mesh)
    if slices > 1 and wanted["slice"] not in (-1, slices):
        raise InputError(
            f"config.mesh.slice: {wanted['slice']}, but the {count} devices are of "
            f"{slices} slices"
        )
    shape = {axis: wanted[axis] for axis in AXES}
    if shape["slice"] == -1:
        shape["slice"] = slices
    free = [axis for axis in AXES if shape[axis] == -1]
    used = math.prod(n for n in shape.values() if n != -1)
    if len(free) == 1 and used > 0 and count % used == 0:
        shape[free[0]] = count // used
    if math.prod(shape.values()) != count or min(shape.values()) < 1:
        given = " × ".join(f"{axis}={wanted[axis]}" for axis in AXES)
        raise InputError(
            f"config.mesh: {given} does not multiply to the {count} devices"
        )
    # Auto axes: XLA places the collectives (explicit axes reject z @ z.T here).
    types = (AxisType.Auto,) * len(AXES)
    sizes = tuple(shape.values())
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    inside, between = (1, *sizes[1:]), (slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inside, between, devices)
    return Mesh(grid, AXES, axis_types=types)


def on_one_device(config: Config) -> tuple[Config, Mesh]:
    """The config for the first device alone, and its mesh."""
    config = with_fields(config, {"mesh.slice": 1, "mesh.data": 1, "mesh.fsdp": 1})
    return config, make_mesh(config, jax.devices()[:1])


def check_training_batch(config: Config, mesh: Mesh) -> None:
    """Checks that the devices share each microbatch equally, and that pairs have
    negatives: the batch's other pairs, on any device. Your own loss may need none.

    Raises:
        InputError: a check fails.
    """
    if config.batch_size == 1 and config.loss.name in LOSS_CLASSES:
        raise InputError(
            "config.batch_size: 1 leaves a pair without negatives, with which the loss "
            f"{config.loss.name!r} compares it; give at least 2"
        )
    if config.batch_size % mesh.size:
        raise InputError(
            f"config.batch_size: {config.batch_size} does not divide by the "
            f"{mesh.size} devices"
        )
    if config.batch_size % (mesh.size * config.microbatches):
        raise InputError(
            f"config.microbatches: a batch of {config.batch_size} does not divide by "
            f"{config.microbatches} microbatches × {mesh.size} devices"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over all devices: fsdp shards the batch as well."""
    return NamedSharding(mesh, P(AXES))


def state_sharding(mesh: Mesh, tree):
    """Sharding of parameters, gradients and moments: over a slice, else over fsdp.

    Each device updates only its shard of a parameter (Xu et al. 2020, "Automatic
    Cross-Replica Sharding of Weight Update in Data-Parallel Training"). A step
    all-gathers the parameters while it computes; see `ops.place`.

    The rule, the largest dimension that divides, needs no annotation in the models.
    """

    def shard(leaf) -> NamedSharding:
        for axes in (AXES[1:], ("fsdp",)):
            n = math.prod(mesh.shape[axis] for axis in axes)
            if n > 1 and leaf.size >= _SHARD_FROM:
                for dimension in np.argsort(leaf.shape, kind="stable")[::-1]:
                    if leaf.shape[dimension] % n == 0:
                        return NamedSharding(mesh, P(*[None] * int(dimension), axes))
        return replicated(mesh)

    return jax.tree.map(shard, tree)


def encoder_sharding(mesh: Mesh, tree):
    """Sharding of a model that only encodes: whole on every device, except with fsdp.

    Its parameters do not change from batch to batch: they are all-gathered once.
    """
    if mesh.shape["fsdp"] > 1:
        return state_sharding(mesh, tree)
    return jax.tree.map(lambda _: replicated(mesh), tree)


def with_sharding(abstract, shardings):
    """The shapes of a tree with their shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        shardings,
    )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding):
    """This process's share of a batch [b / processes, …] → global arrays [b, …]."""
    with jax.transfer_guard("allow"):  # of several devices JAX calls it implicit
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }


def put_sharded(tree, like):
    """Arrays that every process holds in full → global arrays, sharded as `like`."""
    return jax.tree.map(
        lambda x, y: jax.make_array_from_callback(x.shape, y.sharding, x.__getitem__),
        tree,
        like,
    )


def abstract_batch(
    shapes: dict[str, tuple[tuple[int, ...], type]],
) -> dict[str, jax.ShapeDtypeStruct]:
    """Stands for a global batch when a program is traced: {array: (shape, dtype)}."""
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
