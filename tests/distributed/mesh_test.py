"""The mesh and the rule that places parameters on it."""

from dataclasses import dataclass

import jax
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.distributed.mesh import (
    check_training_batch,
    encoder_sharding,
    make_mesh,
    state_sharding,
)


def config(batch_size=128, **mesh):
    c = draft()
    c.batch_size = batch_size
    c.mesh.update(mesh)
    return c


def test_minus_one_takes_the_devices_that_are_left():
    def shape(**mesh):
        return tuple(make_mesh(config(**mesh)).shape.values())

    assert make_mesh(config()).axis_names == ("slice", "data", "fsdp")
    assert shape(fsdp=2) == (1, 4, 2)
    assert shape(data=1, fsdp=-1) == (1, 1, 8)
    assert shape(slice=2, fsdp=2) == (2, 2, 2)


@dataclass(frozen=True)
class Chip:
    """A device as JAX shows one of several slices."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_devices_that_name_their_slices_are_grouped_by_them():
    chips = [Chip(number, number % 2) for number in range(8)]
    mesh = make_mesh(config(fsdp=2), chips)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2}
    for number, part in enumerate(mesh.devices):
        assert {chip.slice_index for chip in part.flat} == {number}
    with pytest.raises(InputError, match=r"mesh\.slice: 4, but .* 8 .* of 2 slices"):
        make_mesh(config(slice=4), chips)


@pytest.mark.parametrize("mesh", [{"data": 3}, {"data": 4, "fsdp": 4}, {"data": 0}])
def test_a_mesh_that_does_not_multiply_to_the_devices(mesh):
    with pytest.raises(InputError, match=r"config\.mesh: .* the 8 devices"):
        make_mesh(config(**mesh))


def test_a_batch_that_does_not_divide_by_the_devices():
    c = config(batch_size=100)
    mesh = make_mesh(c)  # evaluation does not mind
    with pytest.raises(InputError, match=r"config\.batch_size: 100 .* 8 devices"):
        check_training_batch(c, mesh)


def test_microbatches_that_do_not_divide_the_batch():
    c = config()
    c.microbatches = 3
    with pytest.raises(
        InputError, match=r"microbatches: a batch of 128 .* 3 .* × 8 dev"
    ):
        check_training_batch(c, make_mesh(c))


@pytest.mark.parametrize("loss", ["triplet", "infonce", "sigmoid"])
def test_a_batch_of_one_has_no_negatives(loss):
    c = config(batch_size=1, data=1)
    c.loss.name = loss
    mesh = make_mesh(c, jax.devices()[:1])
    with pytest.raises(
        InputError, match=r"config\.batch_size: 1 leaves a pair without"
    ):
        check_training_batch(c, mesh)
    c.loss.name = "own:Loss"  # may not need any
    check_training_batch(c, mesh)
    c.loss.name, c.batch_size = loss, 2
    check_training_batch(c, mesh)


def test_the_largest_dimension_that_divides_is_split():
    tree = {
        "kernel": jax.ShapeDtypeStruct((768, 3072), "float32"),
        "odd": jax.ShapeDtypeStruct((70001, 2), "float32"),
        "small": jax.ShapeDtypeStruct((64, 64), "float32"),
    }
    mesh = make_mesh(config(fsdp=2))

    def specs(shardings):
        return {name: s.spec for name, s in shardings.items()}

    # Over all eight devices, or those of fsdp.
    shards = {
        "kernel": P(None, ("data", "fsdp")),
        "odd": P(None, "fsdp"),
        "small": P(),
    }
    assert specs(state_sharding(mesh, tree)) == shards
    assert specs(encoder_sharding(mesh, tree)) == shards
    # Each slice holds all of it.
    assert specs(state_sharding(make_mesh(config(slice=2, fsdp=2)), tree)) == shards
    mesh = make_mesh(config(fsdp=1))
    assert specs(state_sharding(mesh, tree))["kernel"] == P(None, ("data", "fsdp"))
    assert set(specs(encoder_sharding(mesh, tree)).values()) == {P()}
