"""Settings of the JAX runtime that a run needs before its first computation."""

import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vse_jax.errors import InputError

PRECISIONS = ("highest", "high", "default")


def configure(config: ConfigDict) -> None:
    """Sets matmul precision and the persistent compilation cache.

    The cache is in JAX_COMPILATION_CACHE_DIR, or ~/.cache/vse_jax. A cache that cannot
    be written only costs time: JAX then warns and compiles.

    Raises:
        InputError: config.matmul_precision is none of `PRECISIONS`.
    """
    if config.matmul_precision not in PRECISIONS:
        raise InputError(
            f"config.matmul_precision: '{config.matmul_precision}' is none of "
            + ", ".join(PRECISIONS)
        )
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path.home() / ".cache" / "vse_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
