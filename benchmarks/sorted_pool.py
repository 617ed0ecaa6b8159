"""Forward + backward time of sorted_pool against a plain jnp.sort, side by side.

python -m benchmarks.sorted_pool
"""

import statistics
import time

import jax
import jax.numpy as jnp

from vse_jax.models.sorted_pool import sorted_pool

SHAPES = ((128, 36, 1024), (128, 16, 512))  # sets, set size, dimensions
ROUNDS = 5


def by_sorting(features, weights, mask):
    """What sorted_pool does, for full sets."""
    del mask
    ordered = jnp.sort(features, axis=1, descending=True)
    return jnp.einsum("bk,bkd->bd", weights, ordered)


def seconds(function, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main() -> None:
    for shape in SHAPES:
        keys = jax.random.split(jax.random.key(0))
        features = jax.random.normal(keys[0], shape)
        weights = jax.nn.softmax(jax.random.normal(keys[1], shape[:2]))
        arguments = features, weights, jnp.ones(shape[:2], bool)
        steps = [
            jax.jit(jax.grad(lambda *a, f=f: jnp.square(f(*a)).sum(), argnums=(0, 1)))
            for f in (by_sorting, sorted_pool)
        ]
        for step in steps:
            step(*arguments)  # compiles
        rounds = [[seconds(step, arguments) for step in steps] for _ in range(ROUNDS)]
        sort, count = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print(
            f"{shape}: jnp.sort {1e3 * sort:.0f} ms, "
            f"sorted_pool {1e3 * count:.0f} ms, "
            f"ratio {sort / count:.1f}"
        )


if __name__ == "__main__":
    main()
