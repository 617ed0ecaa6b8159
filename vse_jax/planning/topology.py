"""Devices that programs are compiled for, whether they are here or not.

libtpu holds the TPU's compiler, which needs no TPU. Simulated CPU devices show how XLA
partitions a program over a mesh.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from vse_jax.base.errors import InputError
from vse_jax.distributed.runtime import memory_of


class Chip(NamedTuple):
    """One TPU chip by its maker's figures (cloud.google.com/tpu/docs).

    memory: bytes of HBM. flops: peak bfloat16 FLOP/s. links: bytes/s that it sends to
    other chips of its slice, over all links. network: bytes/s to other slices, its
    share of a pod's. multipliers: multiply-add units, two FLOP a cycle each.
    """

    memory: int
    flops: float
    links: float
    network: float
    multipliers: int

    @property
    def clock(self) -> float:
        """Cycles/s, which follow from the peak."""
        return self.flops / (2 * self.multipliers)


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 150e9, 6.25e9, 8 * 128**2),
    "v5e": Chip(16 * 2**30, 197e12, 200e9, 3.125e9, 4 * 128**2),
    "v5p": Chip(95 * 2**30, 459e12, 600e9, 6.25e9, 8 * 128**2),
    # No clock is published. Two units of 256² would run at 3.5 GHz: taken as four.
    "v6e": Chip(32 * 2**30, 918e12, 400e9, 12.5e9, 4 * 256**2),
}


@dataclass(frozen=True)
class Topology:
    """name: as asked for. memory: bytes of one device. chip: None unless a TPU."""

    name: str
    devices: list[jax.Device]
    memory: int
    chip: Chip | None = None

    @property
    def platform(self) -> str:
        return self.devices[0].platform


def find(name: str | None) -> Topology:
    """The devices of a topology; call it before anything else of JAX runs.

    Args:
        name: a TPU slice ('v5e:2x4', 'v4:2x2x2'), several ('2*v5e:4x4'), 'cpu:8'
            (simulated devices), or None: the devices at hand.

    Raises:
        InputError: no such topology, or libtpu is not installed.
    """
    count, star, slice_ = (name or "here").rpartition("*")
    kind, _, shape = slice_.partition(":")
    known = f"{', '.join(CHIPS)} (as v5e:2x4, 2*v4:2x2x2) and cpu (as cpu:8)"
    slices = int(count) if count.isdecimal() else 0 if star else 1
    if name is not None and kind in CHIPS and slices > 0:
        _show_libtpu()
        # The two cores of a v4 work as one device, as JAX runs it (and a v5p always).
        options = {"chip_config_name": "megacore"} if kind == "v4" else {}
        try:
            found = topologies.get_topology_desc(
                slice_, "tpu", num_slices=slices, **options
            )
        except RuntimeError as error:
            raise InputError(
                f"--topology={name}: not a shape that libtpu knows "
                f"({str(error).splitlines()[0]}); it knows {known}"
            ) from error
        return Topology(name, list(found.devices), CHIPS[kind].memory, CHIPS[kind])
    if not star and kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(shape))
    elif name is not None:
        raise InputError(f"--topology={name}: the compilers here know {known}")
    devices = jax.devices()
    # Simulated devices share the host's memory.
    share = len(devices) if devices[0].platform == "cpu" else 1
    return Topology(name or kind, devices, memory_of(devices[0]) // share)


def _show_libtpu() -> None:
    """Shows JAX the library, and keeps both from looking for a TPU."""
    spec = importlib.util.find_spec("libtpu")
    folders = [*((spec and spec.submodule_search_locations) or ())]
    folders.append(f"{sys.prefix}/tpu/libtpu")  # make setup-tpu-compiler
    files = [Path(os.environ.get("TPU_LIBRARY_PATH", "libtpu.so"))]
    files += [Path(folder) / "libtpu.so" for folder in folders]
    library = next((file for file in files if file.is_file()), None)
    if library is None:
        raise InputError(
            "libtpu, which holds the TPU's compiler, is not here: "
            "make setup-tpu-compiler"
        )
    jax.config.update("jax_platforms", "cpu")
    for variable, value in {
        "TPU_LIBRARY_PATH": str(library),
        "TPU_SKIP_MDS_QUERY": "1",  # no question to the cloud's metadata server
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles
    }.items():
        os.environ.setdefault(variable, value)
