"""Forward + backward time of the ways to sort and weight a set, side by side.

python -m benchmarks.sorted_pool
"""

import statistics

import jax
import jax.numpy as jnp

from benchmarks.rows import repeated
from vse_jax.ops.sorted_pool import by_counting, by_network, sorted_pool_reference

SHAPES = ((128, 36, 1024), (128, 16, 512), (32, 256, 1024))  # sets, size, dimensions
ROUNDS = 5


def by_sorting_minor(features, weights, _mask):
    """jnp.sort of full sets along the last axis, where a set's values are neighbors."""
    ordered = jnp.sort(features.swapaxes(1, 2), axis=2, descending=True)
    return (weights.swapaxes(1, 2) * ordered).sum(axis=2)


WAYS = {
    "jnp.sort": sorted_pool_reference,
    "jnp.sort, minor axis": by_sorting_minor,
    "counting": by_counting,
    "network": by_network,
}


def times(shape: tuple[int, int, int]) -> dict[str, list[float]]:
    """Seconds of each way's gradient in each round; the ways take turns."""
    keys = jax.random.split(jax.random.key(0))
    features = jax.random.normal(keys[0], shape)
    weights = jax.nn.softmax(jax.random.normal(keys[1], shape[:2]))[..., None]
    arguments = features, weights, jnp.ones(shape[:2], bool)

    def ready(way):
        gradient = jax.jit(
            jax.grad(lambda *a: jnp.square(way(*a)).sum(), argnums=(0, 1))
        )
        gradient(*arguments)  # compiles
        return repeated(lambda: jax.block_until_ready(gradient(*arguments)), least=0.1)

    turns = {name: ready(way) for name, way in WAYS.items()}
    rounds = [{name: turn() for name, turn in turns.items()} for _ in range(ROUNDS)]
    return {name: [found[name] for found in rounds] for name in WAYS}


def main() -> None:
    for shape in SHAPES:
        medians = (
            f"{name} {1e3 * statistics.median(seconds):.3g} ms"
            for name, seconds in times(shape).items()
        )
        print(f"{shape}: {', '.join(medians)}", flush=True)


if __name__ == "__main__":
    main()
