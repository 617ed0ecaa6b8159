"""Devices that programs are compiled for, whether they are here or not.

libtpu holds the TPU's compiler and needs no TPU: on any machine it compiles a program
for a slice of a named shape. Simulated CPU devices show what the partitioner makes of a
mesh.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies

from vse_jax.base.errors import InputError
from vse_jax.distributed.runtime import memory_of


@dataclass(frozen=True)
class Chip:
    """One TPU chip, by its maker's figures (cloud.google.com/tpu/docs).

    memory: bytes of HBM. flops: bfloat16 FLOP/s at the peak. links: bytes/s that it
    sends to the other chips, over all its links. multipliers: multiply-add units, each
    good for two FLOP a cycle.
    """

    memory: int
    flops: float
    links: float
    multipliers: int

    @property
    def clock(self) -> float:
        """Cycles/s: what the peak comes to for each unit."""
        return self.flops / (2 * self.multipliers)


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 150e9, 8 * 128**2),
    "v5e": Chip(16 * 2**30, 197e12, 200e9, 4 * 128**2),
    "v5p": Chip(95 * 2**30, 459e12, 600e9, 8 * 128**2),
    # Two units of 256²; no clock is told, and 3.5 GHz is none: taken as four at 1.75.
    "v6e": Chip(32 * 2**30, 918e12, 400e9, 4 * 256**2),
}
# Two cores that work as one device, as JAX runs a v4 (a v5p has no other way).
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


@dataclass(frozen=True)
class Topology:
    """name: as asked for. memory: bytes of one device. chip: None where not a TPU."""

    name: str
    devices: list[jax.Device]
    memory: int
    chip: Chip | None = None

    @property
    def platform(self) -> str:
        return self.devices[0].platform


def find(name: str | None) -> Topology:
    """The devices of a topology. Nothing else of JAX may have run before.

    Args:
        name: a TPU slice ('v5e:2x4', 'v4:2x2x2'), 'cpu:8' (simulated devices), or None:
            the devices at hand.

    Raises:
        InputError: no such topology, or libtpu is not here.
    """
    kind, _, shape = (name or "").partition(":")
    if name is None:
        return _here("here")
    if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(shape))
        return _here(name)
    known = f"{', '.join(CHIPS)} (as v5e:2x4, v4:2x2x2) and cpu (as cpu:8)"
    if kind not in CHIPS:
        raise InputError(f"--topology={name}: the compilers here know {known}")
    _prepare_compiler()
    options = _OPTIONS.get(kind, {})
    try:
        found = topologies.get_topology_desc(name, "tpu", **options)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--topology={name}: not a shape that libtpu knows ({reason}); it knows "
            f"{known}"
        ) from error
    devices = list(found.devices)
    chip = CHIPS[kind]
    return Topology(name, devices, chip.memory, chip)


def _here(name: str) -> Topology:
    devices = jax.devices()
    # What a CPU has is the host's, which its simulated devices share.
    share = len(devices) if devices[0].platform == "cpu" else 1
    return Topology(name, devices, memory_of(devices[0]) // share)


def _prepare_compiler() -> None:
    """Shows JAX the library, and keeps both from looking for a TPU."""
    library = _libtpu()
    jax.config.update("jax_platforms", "cpu")
    for name, value in {
        "TPU_LIBRARY_PATH": str(library),
        "TPU_SKIP_MDS_QUERY": "1",  # no question to the cloud's metadata server
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles
    }.items():
        os.environ.setdefault(name, value)


def _libtpu() -> Path:
    spec = importlib.util.find_spec("libtpu")
    folders = [
        Path(folder) for folder in (spec and spec.submodule_search_locations) or ()
    ]
    folders.append(Path(sys.prefix) / "tpu" / "libtpu")  # make setup-tpu-compiler
    places = [Path(os.environ.get("TPU_LIBRARY_PATH", "libtpu.so"))]
    places += [folder / "libtpu.so" for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        "libtpu, which holds the TPU's compiler, is not here: make setup-tpu-compiler"
    )
