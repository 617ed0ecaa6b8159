"""One training step of the full grid model in a process of its own.

JAX_COMPILATION_CACHE_DIR=$(mktemp -d) python -m benchmarks.first_step
"""

from benchmarks import inputs, our_rows

if __name__ == "__main__":
    our_rows.prepare()
    config = inputs.grid_config()
    our_rows.training_step(config, inputs.training_batch(config))()
