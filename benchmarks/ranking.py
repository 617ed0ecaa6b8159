"""Time and memory of all COCO protocols (5K and 1K five-fold, both directions).

python -m benchmarks.ranking
"""

import resource
import time

import numpy as np

from vse_jax.evaluation.ranking import retrieval_metrics

IMAGES, CAPTIONS_PER_IMAGE, DIMENSIONS = 5000, 5, 1024
ROUNDS = 5


def main() -> None:
    rng = np.random.default_rng(0)

    def unit_rows(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, DIMENSIONS), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    images = unit_rows(IMAGES)
    captions = unit_rows(IMAGES * CAPTIONS_PER_IMAGE)

    def product() -> None:
        for tile in np.split(images, 5):
            tile @ captions.T

    def protocols() -> None:
        retrieval_metrics(images, captions, CAPTIONS_PER_IMAGE)

    for function in (protocols, product):
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{function.__name__}: min {min(times):.2f} s, median "
            f"{sorted(times)[ROUNDS // 2]:.2f} s, peak memory so far {peak:.2f} GB"
        )


if __name__ == "__main__":
    main()
