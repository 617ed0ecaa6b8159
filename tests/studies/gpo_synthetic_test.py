"""The synthetic study: patterns and errors by hand, generators, training, the table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from studies import gpo_synthetic as synthetic
from vse_jax.base.errors import InputError
from vse_jax.models.gpo import GPO, position_encoding

QUICK = synthetic.Recipe(batch_size=4, steps=6)


def weights_of(generator, lengths, size):
    """The generator's coefficients; compiled as a whole, which is quicker."""
    graphdef, state = nnx.split(generator)

    @jax.jit
    def weights(state):
        return nnx.merge(graphdef, state).weights(jnp.array(list(lengths)), size)

    return np.asarray(weights(state))


@pytest.mark.parametrize(
    ("pattern", "five", "four"),
    [
        ("A", [1 / 5] * 5, [1 / 4] * 4),
        ("M-1", [1, 0, 0, 0, 0], [1, 0, 0, 0]),
        ("M-10", [1 / 5] * 5, [1 / 4] * 4),
        ("T-50", [1 / 3, 1 / 3, 1 / 3, 0, 0], [1 / 2, 1 / 2, 0, 0]),
        ("L", [5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15], [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_patterns_of_small_sets(pattern, five, four):
    coefficients = synthetic.true_coefficients(pattern, jnp.array([5, 4]), 6)
    np.testing.assert_allclose(coefficients, [[*five, 0], [*four, 0, 0]], atol=1e-7)


def test_the_ten_largest_of_twelve():
    coefficients = synthetic.true_coefficients("M-10", jnp.array([12]), 12)
    np.testing.assert_allclose(coefficients[0], [0.1] * 10 + [0, 0], atol=1e-7)


def test_rmse_is_over_the_ranks_of_the_set():
    predicted = jnp.array([[0.5, 0.5, 9.0], [0.2, 0.2, 0.6]])
    true = jnp.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]])
    errors = synthetic.rmse(predicted, true, jnp.array([2, 3]))
    np.testing.assert_allclose(errors, [0.5, (0.18 / 3) ** 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["fspool", "index_bigru", "gpo"])
def test_coefficients_sum_to_one_and_end_with_the_set(name):
    generator = synthetic.GENERATORS[name](nnx.Rngs(0))
    weights = weights_of(generator, [2, 7, 4], 7)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert [np.count_nonzero(row) for row in weights] == [2, 7, 4]
    wider = weights_of(generator, [2, 7, 4], 9)  # more padding changes nothing
    np.testing.assert_allclose(wider[:, :7], weights, atol=1e-6)


def test_the_gpo_row_is_the_projects_gpo():
    assert type(synthetic.GENERATORS["gpo"](nnx.Rngs(0))) is GPO


def test_the_interpolated_vector_is_read_at_the_relative_rank():
    generator = synthetic.InterpolatedVector(pieces=2, rngs=nnx.Rngs(0))
    generator.knots[...] = 0.1 * jnp.log(jnp.array([[4.0], [1.0], [1.0]]))
    weights = weights_of(generator, [3, 5], 5)
    # Between knots, scores and not coefficients are interpolated: log 2 at rank 1 of 5.
    expected = [[4 / 6, 1 / 6, 1 / 6, 0, 0], [4 / 9, 2 / 9, 1 / 9, 1 / 9, 1 / 9]]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_the_mlps_ranks_have_the_same_coefficient_in_every_set():
    generator = synthetic.GENERATORS["mlp"](nnx.Rngs(0))
    small, large = weights_of(generator, [30, 100], 100)
    np.testing.assert_allclose(small[:30], large[:30], rtol=1e-6)
    assert np.ptp(large) > 1e-4
    assert not small[30:].any()
    assert large.sum() == pytest.approx(1, abs=1e-5)


def test_the_index_bigru_is_gpo_with_vectors_of_its_own():
    gpo = GPO(rngs=nnx.Rngs(0))
    generator = synthetic.GENERATORS["index_bigru"](nnx.Rngs(1))
    generator.gru, generator.linear = gpo.gru, gpo.linear
    expected = weights_of(gpo, [3, 6], 6)
    assert not np.allclose(weights_of(generator, [3, 6], 6), expected)
    generator.table[...] = jnp.asarray(position_encoding(synthetic.LARGEST, 32))
    np.testing.assert_allclose(weights_of(generator, [3, 6], 6), expected, atol=1e-6)


def test_random_sets_have_the_trained_sizes():
    features, lengths = synthetic.random_sets(jax.random.key(0), 2000)
    assert (int(lengths.min()), int(lengths.max())) == (20, 100)
    assert features.shape[:2] == (2000, 100)


class Fixed(nnx.Module):
    """Gives what it was given, whatever the sizes."""

    def __init__(self, weights):
        self.kept = nnx.Param(weights)

    def weights(self, lengths, size):
        return self.kept[...]


def test_the_loss_compares_pooled_vectors():
    features = jnp.array([[[1.0, 6.0], [3.0, 2.0], [99.0, 99.0]]])  # two elements
    lengths = jnp.array([2])
    generator = Fixed(jnp.array([[0.5, 0.5, 0.0]]))
    largest = jnp.array([[1.0, 0.0, 0.0]])
    # Means (2, 4) against maxima (3, 6).
    loss = synthetic.pooling_loss(generator, features, lengths, largest)
    assert float(loss) == pytest.approx((1 + 4) / 2)
    mean = generator.kept[...]
    assert synthetic.pooling_loss(generator, features, lengths, mean) == 0


def test_training_brings_the_coefficients_nearer():
    recipe = dataclasses.replace(QUICK, learning_rate=0.01, steps=1)
    graphdef, params, _ = synthetic.train_generator("fspool", recipe)
    before = synthetic.measure(graphdef, params)["seen"]
    # More than two calls of 50 steps.
    recipe = dataclasses.replace(recipe, steps=120)
    graphdef, params, losses = synthetic.train_generator("fspool", recipe)
    after = synthetic.measure(graphdef, params)["seen"]
    assert losses.shape == (120, len(synthetic.PATTERNS))
    for index, pattern in enumerate(synthetic.PATTERNS[1:], 1):  # A is where it starts
        assert 0 < losses[-20:, index].mean() < losses[:5, index].mean() / 4, pattern
    assert after["M-10"] < before["M-10"] * 0.75
    assert after["T-50"] < before["T-50"] * 0.75


def test_the_seed_decides_everything():
    _, _, losses = synthetic.train_generator("mlp", QUICK)
    np.testing.assert_array_equal(synthetic.train_generator("mlp", QUICK)[2], losses)
    other = dataclasses.replace(QUICK, seed=1)
    assert not np.allclose(synthetic.train_generator("mlp", other)[2], losses)


def test_measured_errors_are_means_over_the_sizes():
    generator = synthetic.GENERATORS["gpo"](nnx.Rngs(0))
    graphdef, state = nnx.split(generator)
    params = nnx.to_pure_dict(state)
    params = jax.tree.map(lambda x: jnp.stack([x] * 5), params)
    measured = synthetic.measure(graphdef, params)
    weights = weights_of(generator, range(10, 20), 19)
    errors = []
    for n, row in zip(range(10, 20), weights, strict=True):
        true = np.array([1.0] + [0.0] * (n - 1))
        errors.append(np.sqrt(np.mean((row[:n] - true) ** 2)))
    assert measured["smaller"]["M-1"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_study_leaves_the_whole_table(tmp_path, capsys):
    table = synthetic.run_study(dataclasses.replace(QUICK, steps=1), tmp_path)
    assert json.loads((tmp_path / "table6.json").read_text()) == table
    assert shape(table) == shape(synthetic.PAPER)
    out = capsys.readouterr().out
    assert f"{table['larger']['gpo']['T-50']:.4f} (0.004)" in out
    assert f"{table['seen']['mlp']['M-10']:.4f} (0.047)" in out


def shape(table):
    """Its keys, in order."""
    return [(name, g, *row) for name, rows in table.items() for g, row in rows.items()]


def test_bad_input(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds checkpoints of another run"):
        synthetic.run_study(QUICK, tmp_path)
