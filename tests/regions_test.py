"""Memory-mapped region features and their size augmentation."""

import pickle

import numpy as np
import pytest

from vse_jax.data.regions import MappedArray, drop_regions
from vse_jax.errors import InputError


def test_pickles_as_its_path(tmp_path):
    values = np.arange(60_000, dtype=np.float32).reshape(100, 600)
    np.save(tmp_path / "values.npy", values)

    data = pickle.dumps(MappedArray(tmp_path / "values.npy", stride=2))
    again = pickle.loads(data)

    assert len(data) < 1000
    assert again.shape == (50, 600)
    np.testing.assert_array_equal(again[3], values[6])


@pytest.mark.parametrize(
    "content", [None, b"", b"not an array", "truncated", "objects"], ids=str
)
def test_bad_file_is_named(tmp_path, content):
    path = tmp_path / "values.npy"
    if content == "truncated":
        np.save(path, np.zeros((10, 10)))
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "objects":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=r"values.npy: ") as error:
        MappedArray(path)
    assert "\n" not in str(error.value)


def test_drop_regions():
    features = np.arange(36, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)

    kept = [drop_regions(features, rng, 0.2)[:, 0] for _ in range(500)]

    np.testing.assert_allclose(np.mean([len(k) for k in kept]) / 36, 0.8, atol=0.01)
    assert all((np.diff(k) > 0).all() for k in kept)  # a subset, in order
    assert (drop_regions(features, rng, 0.0) == features).all()


def test_drop_regions_keeps_one():
    features = np.arange(3, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)

    kept = [drop_regions(features, rng, 1.0) for _ in range(50)]

    assert {len(k) for k in kept} == {1}
    assert {k.item() for k in kept} == {0, 1, 2}
