import numpy as np
import pytest

from benchmarks import scaling


@pytest.mark.parametrize("fixed", [0.0, 20.0])
def test_a_power_law_is_found_with_its_fixed_cost(fixed):
    sizes = np.array([2.0, 8.0, 32.0, 128.0])
    law = scaling.fit(sizes, fixed + 3 * sizes**1.5)
    assert law.exponent == pytest.approx(1.5, abs=0.02)
    assert law.fixed == pytest.approx(fixed, abs=0.3)
