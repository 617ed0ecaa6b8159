"""Settings of the JAX runtime that a run needs before its first computation."""

import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vse_jax.base.config import flat_fields
from vse_jax.base.errors import InputError, check_choice

PRECISIONS = ("highest", "high", "default")
DTYPES = ("float32", "bfloat16")


def configure(config: ConfigDict) -> None:
    """Sets matmul precision and the persistent compilation cache.

    The cache is in JAX_COMPILATION_CACHE_DIR, or ~/.cache/vse_jax. A cache that cannot
    be written only costs time: JAX then warns and compiles.

    Raises:
        InputError: one of the config's general fields has an impossible value.
    """
    check_choice("config.matmul_precision", config.matmul_precision, PRECISIONS)
    check_choice("config.compute_dtype", config.compute_dtype, DTYPES)
    smallest = {
        "seed": 0,
        "num_epochs": 1,
        "max_steps": 1,
        "batch_size": 1,
        "microbatches": 1,
        "log_every": 1,
        "image.size": 1,
        "text.layers": 0,
        "data.max_tokens": 3,
        "checkpoint.every_steps": 1,
        "eval.batch_size": 1,
    }
    fields = flat_fields(config)
    for field, least in smallest.items():
        value = fields[field]
        if isinstance(value, int) and value < least:
            raise InputError(f"config.{field}: {value} is less than {least}")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path.home() / ".cache" / "vse_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
