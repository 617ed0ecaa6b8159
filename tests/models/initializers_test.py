"""Start values: the distributions, and that a key decides them."""

import jax
import numpy as np
import pytest

from vse_jax.models.initializers import constant, he_normal, normal, uniform

KERNEL = (3, 3, 16, 64)


@pytest.mark.parametrize(
    ("init", "deviation", "largest"),
    [
        (uniform(0.5), 0.5 / 3**0.5, 0.5),
        (normal(0.02), 0.02, np.inf),
        (he_normal(KERNEL), (2 / (9 * 64)) ** 0.5, np.inf),
        (constant(0.2), 0, 0.2),
    ],
)
def test_the_distributions(init, deviation, largest):
    values = init(jax.random.key(0), KERNEL)
    assert values.dtype == np.float32
    # 9,216 draws: both are known to about 1 %.
    assert values.std() == pytest.approx(deviation, rel=0.05, abs=1e-7)
    assert (
        abs(values.mean() - (largest if deviation == 0 else 0))
        < 0.05 * deviation + 1e-6
    )
    assert abs(values).max() <= np.float32(largest)


def test_a_key_gives_the_same_values_inside_of_a_program():
    init = normal(1.0)
    first, second = (init(jax.random.key(seed), (5,)) for seed in (0, 1))
    assert not np.array_equal(first, second)
    keys = jax.random.split(jax.random.key(0))
    both = jax.jit(jax.vmap(lambda key: init(key, (5,))))(keys)
    np.testing.assert_array_equal(both, [init(key, (5,)) for key in keys])
