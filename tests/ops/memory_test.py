"""Freed memory on CPUs."""

import platform
import resource

import pytest

from vse_jax.ops.memory import disable_malloc_trim


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_freed_memory_is_used_again():
    disable_malloc_trim()

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**27)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 100
