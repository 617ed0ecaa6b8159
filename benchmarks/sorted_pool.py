"""Forward + backward time of the ways to sort and weight a set, side by side.

python -m benchmarks.sorted_pool
"""

import statistics

import jax
import jax.numpy as jnp

from benchmarks.rows import repeated
from vse_jax.ops.sorted_pool import by_counting, by_network

SHAPES = ((128, 36, 1024), (128, 16, 512), (32, 256, 1024))  # sets, size, dimensions
ROUNDS = 5


def by_sorting(features, weights, _mask):
    """What sorted_pool does, for full sets."""
    ordered = jnp.sort(features, axis=1, descending=True)
    return (weights * ordered).sum(axis=1)


def by_sorting_minor(features, weights, _mask):
    """The same along the last axis, where a set's values lie side by side."""
    ordered = jnp.sort(features.swapaxes(1, 2), axis=2, descending=True)
    return (weights.swapaxes(1, 2) * ordered).sum(axis=2)


WAYS = {
    "jnp.sort": by_sorting,
    "jnp.sort, minor axis": by_sorting_minor,
    "counting": by_counting,
    "network": by_network,
}


def ready(way, arguments):
    """A turn of the way's gradient, compiled."""
    gradient = jax.jit(jax.grad(lambda *a: jnp.square(way(*a)).sum(), argnums=(0, 1)))
    gradient(*arguments)
    return repeated(lambda: jax.block_until_ready(gradient(*arguments)), least=0)


def main() -> None:
    for shape in SHAPES:
        keys = jax.random.split(jax.random.key(0))
        features = jax.random.normal(keys[0], shape)
        weights = jax.nn.softmax(jax.random.normal(keys[1], shape[:2]))[..., None]
        arguments = features, weights, jnp.ones(shape[:2], bool)
        turns = {name: ready(way, arguments) for name, way in WAYS.items()}
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(ROUNDS)]
        times = (
            f"{name} {1e3 * statistics.median(times[name] for times in rounds):.0f} ms"
            for name in WAYS
        )
        print(f"{shape}: {', '.join(times)}")


if __name__ == "__main__":
    main()
