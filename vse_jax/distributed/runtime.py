"""The frame of every computation: processes, lock, precision, compilation cache."""

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from vse_jax import __version__
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.base.lock import only_writer
from vse_jax.command_line import errors_on_one_line
from vse_jax.config import Config, shared_fields
from vse_jax.distributed import cluster, preemption
from vse_jax.distributed.multihost import assert_equal_across_hosts, on_process_zero

Connection = tuple[str | None, int | None, int | None]  # arguments of cluster.connect


@contextlib.contextmanager
def started(
    config: Config,
    mode: str,
    connection: Connection,
    alone: bool,
    written: AnyPath | None = None,
) -> Iterator[None]:
    """Joins the processes of the run and sets JAX up for the block.

    Args:
        config, mode: of the run; compared between its processes.
        connection: coordinator, process_id, num_processes, or three times None.
        alone: the mode is work for one process.
        written: folder that no other run may write to until the block ends.

    Raises:
        SystemExit: the block failed, the processes do not fit, or another run writes to
            the folder; one line says how.
    """
    with (
        cluster.ends_together(),
        errors_on_one_line(),
        contextlib.ExitStack() as stack,
    ):
        cluster.connect(*connection)
        several = jax.distributed.is_initialized()

        def lock() -> None:
            if written is not None:
                stack.enter_context(
                    only_writer(written / "lock", "trains in this folder")
                )

        if not several:
            lock()  # before it takes devices, which another run may have
        preemption.connected()
        configure(config)
        if alone and jax.process_count() > 1:
            raise InputError(
                f"--mode={mode} is for one process, not {jax.process_count()}; "
                "--num_processes=1 where a cluster starts several"
            )
        assert_equal_across_hosts("versions", versions())
        assert_equal_across_hosts("config", {"mode": mode} | shared_fields(config))
        if several:
            on_process_zero(lock)
        yield


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {"vse_jax": __version__, "python": platform.python_version(), **packages}


def matmul_precision(config: Config, backend: str) -> str:
    """JAX's name of config.matmul_precision on a platform's devices ('cpu', 'tpu').

    'auto' is float32 on CPUs, where nothing else is faster, and 'high' elsewhere: TF32
    on NVIDIA's GPUs, three bfloat16 products on TPUs (one costs accuracy, six are
    float32 and twice the time).
    """
    if config.matmul_precision != "auto":
        return config.matmul_precision
    return "highest" if backend == "cpu" else "high"


def configure(config: Config) -> None:
    """Sets matmul precision and the persistent compilation cache.

    The cache is where JAX_COMPILATION_CACHE_DIR says, or in ~/.cache/vse_jax/compiled.
    One that cannot be written only costs time: JAX then warns and compiles. Several
    processes on CPUs go without: process 0 alone would find its programs there, and
    gloo gives up on the others, which compile theirs, after 30 seconds.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    precision = matmul_precision(config, jax.default_backend())
    jax.config.update("jax_default_matmul_precision", precision)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path.home() / ".cache" / "vse_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def memory_of(device: jax.Device) -> int:
    """Bytes of a device's memory; of a CPU's, the host's."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
