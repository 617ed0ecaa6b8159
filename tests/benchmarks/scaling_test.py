import pytest

from benchmarks import scaling


def test_a_power_law_is_found():
    sizes = [2.0, 8.0, 32.0]
    assert scaling.fit(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx((1.5, 3))
