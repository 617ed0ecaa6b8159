"""The device mesh (data, fsdp) and where every array lives on it."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vse_jax.base.errors import InputError
from vse_jax.config import LOSS_CLASSES, Config, with_fields

AXES = ("data", "fsdp")
_SHARD_FROM = 2**16  # elements; smaller leaves are replicated: not worth a collective


def make_mesh(config: Config, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh of `devices` (default: all) by `config.mesh`; -1: all that are left.

    Raises:
        InputError: the axes do not multiply to the number of devices.
    """
    devices = devices or jax.devices()
    count = len(devices)
    shape = {"data": config.mesh.data, "fsdp": config.mesh.fsdp}
    free = [axis for axis in AXES if shape[axis] == -1]
    used = int(np.prod([n for n in shape.values() if n != -1]))
    if len(free) == 1 and used > 0 and count % used == 0:
        shape[free[0]] = count // used
    if np.prod(list(shape.values())) != count or min(shape.values()) < 1:
        raise InputError(
            f"config.mesh: data={config.mesh.data} × fsdp={config.mesh.fsdp} does not "
            f"multiply to the {count} devices"
        )
    # Auto axes: XLA places the collectives (explicit axes reject z @ z.T here).
    return jax.make_mesh(
        tuple(shape.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def on_one_device(config: Config) -> tuple[Config, Mesh]:
    """The config for the first device alone, and its mesh."""
    config = with_fields(config, {"mesh.data": 1, "mesh.fsdp": 1})
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
    """Sharding of parameters, gradients and moments: over all devices, else over fsdp.

    Each device updates only its shard of a parameter (Xu et al. 2020, "Automatic
    Cross-Replica Sharding of Weight Update in Data-Parallel Training"). A step
    all-gathers the parameters while it computes; see `ops.place`.

    The rule, the largest dimension that divides, needs no annotation in the models.
    """

    def shard(leaf) -> NamedSharding:
        for axes in (AXES, ("fsdp",)):
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
