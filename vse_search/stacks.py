"""Which of the pictures found are nearly equal, as those of a burst are."""

import numpy as np
from jaxtyping import Float, Float32

# Cosine of two pictures' vectors, at least: docs/search_page.md says what it stacks.
LEAST_COSINE = 0.99
# A model sees every picture as a square: what is upright and what lies tell it nothing.
_MOST_DIFFERENCE = 0.02  # of two ratios of width to height


def stacks(
    vectors: Float32[np.ndarray, "N D"],
    ratios: Float[np.ndarray, " N"],
    *,
    neighbours: bool,
) -> list[list[int]]:
    """Places of nearly equal pictures, each stack with its first picture first.

    Every picture of a stack is nearly equal to the first, so a stack does not drift.
    No place is in two stacks; one that is alone is in none.

    Args:
        vectors: of the pictures, in the order in which they are shown.
        ratios: width / height of each.
        neighbours: a stack has only pictures that follow each other.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1.0)
    alike = units @ units.T >= LEAST_COSINE
    alike &= np.abs(np.log(ratios[:, None] / ratios)) <= _MOST_DIFFERENCE
    found: list[list[int]] = []
    for place in range(len(vectors)):
        candidates = found[-1:] if neighbours else found
        for stack in candidates:
            if alike[stack[0], place]:
                stack.append(place)
                break
        else:
            found.append([place])
    return [stack for stack in found if len(stack) > 1]
