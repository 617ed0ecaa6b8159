"""Devices to compile for: names, and what happens without libtpu."""

import importlib.util
import re

import jax
import pytest

from vse_jax.base.errors import InputError
from vse_jax.distributed.runtime import memory_of
from vse_jax.planning import topology


@pytest.mark.parametrize(
    "name", ["v9:2x2", "cpu", "cpu:0", "cpu:two", "tpu", "0*v5e:2x4", "2*cpu:8"]
)
def test_an_unknown_topology_is_named_with_those_that_are_known(name):
    with pytest.raises(
        InputError, match=f"={re.escape(name)}: .*v4, v5e, v5p, v6e .*cpu:8"
    ):
        topology.find(name)


def test_without_libtpu_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(InputError, match=r"libtpu, .*: make setup-tpu-compiler"):
        topology.find("v5e:2x4")


def test_clocks_follow_from_the_peaks():
    clocks = {name: chip.clock for name, chip in topology.CHIPS.items()}
    assert clocks == pytest.approx(
        {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}, rel=0.01
    )


def test_simulated_devices_share_the_hosts_memory():
    (host,) = {memory_of(device) for device in jax.devices()}
    assert topology.find(None).memory == host // len(jax.devices())
