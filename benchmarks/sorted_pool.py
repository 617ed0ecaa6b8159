"""Forward + backward time of the ways to sort and weight a set, side by side.

python -m benchmarks.sorted_pool
"""

import statistics
import time

import jax
import jax.numpy as jnp

from vse_jax.ops.sorted_pool import by_counting, by_network

# Sets, set size, dimensions.
SHAPES = ((128, 36, 1024), (128, 16, 512), (32, 256, 1024))
ROUNDS = 5


def by_sorting(features, weights, mask):
    """What sorted_pool does, for full sets."""
    del mask
    ordered = jnp.sort(features, axis=1, descending=True)
    return (weights * ordered).sum(axis=1)


def by_sorting_minor(features, weights, mask):
    """The same along the last axis, where a set's values lie side by side."""
    del mask
    ordered = jnp.sort(features.swapaxes(1, 2), axis=2, descending=True)
    return (weights.swapaxes(1, 2) * ordered).sum(axis=2)


WAYS = {
    "jnp.sort": by_sorting,
    "jnp.sort, minor axis": by_sorting_minor,
    "counting": by_counting,
    "network": by_network,
}


def seconds(function, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main() -> None:
    for shape in SHAPES:
        keys = jax.random.split(jax.random.key(0))
        features = jax.random.normal(keys[0], shape)
        weights = jax.nn.softmax(jax.random.normal(keys[1], shape[:2]))[..., None]
        arguments = features, weights, jnp.ones(shape[:2], bool)
        steps = {
            name: jax.jit(
                jax.grad(lambda *a, f=f: jnp.square(f(*a)).sum(), argnums=(0, 1))
            )
            for name, f in WAYS.items()
        }
        for step in steps.values():
            step(*arguments)  # compiles
        rounds = [
            {name: seconds(step, arguments) for name, step in steps.items()}
            for _ in range(ROUNDS)
        ]
        times = (
            f"{name} {1e3 * statistics.median(r[name] for r in rounds):.0f} ms"
            for name in steps
        )
        print(f"{shape}: {', '.join(times)}")


if __name__ == "__main__":
    main()
