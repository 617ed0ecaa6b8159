"""Every aggregator: what it computes, and what all of them promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.config import Config, with_fields
from vse_jax.models import vse
from vse_jax.models.build import build_model
from vse_jax.models.pooling import build_pool, interpolate
from vse_jax.models.vse import attributions

CLOSED = ("avg", "max", "kmax", "gem", "cls", "last")  # have a formula
POOLS = (*CLOSED, "gpo", "fspool", "seq2seq", "selfattn", "map", "ep")
ORDERED = ("cls", "last", "seq2seq")  # depend on the order of the set, and should
SIZE, DIM = 8, 6


def pool_of(kind, k=3, features=DIM):
    fields = {"image.pool": kind, "image.pool_k": k, "embed_dim": DIM}
    config = with_fields(Config(), fields)
    return build_pool(config, "image", features, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", params=POOLS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pool(kind):
    """The jitted aggregator, as a function of features and mask."""
    module = pool_of(kind)
    return jax.jit(lambda features, mask: module(features, mask))


def sets(lengths=(8, 5, 2, 1), seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(lengths), SIZE, DIM)).astype(np.float32)
    mask = np.arange(SIZE) < np.array(lengths)[:, None]
    return jnp.asarray(features), jnp.asarray(mask)


def test_padding_does_not_matter(pool):
    features, mask = sets()
    pooled = pool(features, mask)
    assert pooled.dtype == np.float32
    for anything in (jnp.nan, 1e9):
        spoilt = jnp.where(mask[..., None], features, anything)
        np.testing.assert_array_equal(pool(spoilt, mask), pooled)
    for spoilt_by in (jnp.nan, 0.0):
        wider = jnp.pad(
            features, ((0, 0), (1, 2), (0, 0)), constant_values=spoilt_by
        )  # in front, too: the members may lie anywhere
        moved = pool(wider, jnp.pad(mask, ((0, 0), (1, 2))))
        np.testing.assert_allclose(moved, pooled, atol=1e-6)


def test_the_order_of_the_set_matters_only_where_it_should(kind, pool):
    features, mask = sets(lengths=(8, 8, 8))
    pooled = pool(features, mask)
    order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
    shuffled = pool(features[:, order], mask)
    if kind in ORDERED:
        assert np.abs(shuffled - pooled).max() > 1e-3
    else:
        np.testing.assert_allclose(shuffled, pooled, atol=1e-6)


@pytest.mark.parametrize("name", ["gpo", "fspool", *CLOSED])
def test_what_members_add_sums_to_the_pooled_vector(name):
    module = pool_of(name)
    features, mask = sets()
    features = jnp.abs(jnp.round(2 * features)) + 0.5  # with equal values
    spoilt = jnp.where(mask[..., None], features, jnp.nan)
    added = attributions(module, spoilt, mask, jnp.ones((4, DIM)))
    np.testing.assert_allclose(added.sum(axis=1), module(features, mask), rtol=1e-5)
    assert not added[~mask].any()


@pytest.mark.parametrize("name", POOLS)
def test_what_members_add_is_the_mean_slope_from_zeros(name):
    """By its definition, with slopes of small differences at many places."""
    module = pool_of(name)
    features, mask = sets(lengths=(5,), seed=3)
    features = jnp.abs(features) + 0.1
    weights = jax.random.normal(jax.random.key(1), (1, DIM))
    spoilt = jnp.where(mask[..., None], features, jnp.nan)
    found = attributions(module, spoilt, mask, weights)[0]

    places = 2.0 ** np.linspace(-16, 0, 401)
    step = 1e-2
    moves = np.eye(SIZE * DIM, dtype=np.float32).reshape(-1, SIZE, DIM)[:8]

    @jax.jit
    def slopes(place):
        """Of the result at this share of the set, by its first 8 numbers."""
        near = place * features[0] * (1 + step * np.stack([moves, -moves]))
        sets = near.reshape(-1, SIZE, DIM)
        pooled = module(sets, jnp.tile(mask, (16, 1))) @ weights[0]
        up, down = pooled.reshape(2, 8)
        return (up - down) / (2 * step * place)

    values = np.array([slopes(place) for place in places])
    expected = np.trapezoid(values, places, axis=0)
    apart = np.abs(np.asarray(found).reshape(-1)[:8] - expected).max()
    assert apart <= 5e-3 * np.abs(found).max()


@pytest.mark.parametrize("scale", [0.1, 1, 5])
@pytest.mark.parametrize("name", ["selfattn", "seq2seq", "map", "ep"])
def test_integrated_gradients_add_up(name, scale):
    """… also of steep poolings: weights four times as large, no biases."""
    module = pool_of(name)
    steep = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, nnx.state(module))
    nnx.update(module, steep)
    features, mask = sets(lengths=(8, 8, 5, 2), seed=1)
    features = scale * features
    pooled = module(features, mask)
    zeros = module(jnp.zeros_like(features), mask)
    weights = pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True) ** 2
    split = jax.jit(lambda features: attributions(module, features, mask, weights))
    added = split(features).sum(axis=(1, 2)) + (zeros * weights).sum(axis=1)
    np.testing.assert_allclose(added, 1, rtol=1e-2)


def test_intervals_that_double_beat_one_rule_of_more_nodes(monkeypatch):
    """Of a steep attention head without biases, whose norm changes all near zero."""
    module = pool_of("map")
    nnx.update(module, jax.tree.map(lambda x: 8 * x, nnx.state(module)))
    features, mask = sets(lengths=(8, 8, 5, 2), seed=1)
    features, weights = 20 * features, jnp.ones((4, DIM))
    expected = (module(features, mask) - module(0 * features, mask)).sum(axis=1)

    def missed():
        added = attributions(module, features, mask, weights).sum(axis=(1, 2))
        return np.abs(added - expected).max() / np.abs(expected).max()

    ours = missed()
    monkeypatch.setattr(vse, "_INTERVALS", 1)
    monkeypatch.setattr(vse, "_NODES", 64)
    assert ours < 1e-3
    assert missed() > 10 * ours


def test_a_member_of_gpo_adds_its_ranks_weight_times_its_value():
    module = pool_of("gpo")
    features, mask = sets(lengths=(8,))
    weights = np.asarray(module.weights(mask.sum(axis=1), SIZE))[0]
    values = np.asarray(features[0])
    ranks = np.argsort(np.argsort(-values, axis=0), axis=0)
    added = attributions(module, features, mask, jnp.ones((1, DIM)))[0]
    np.testing.assert_allclose(added, weights[ranks] * values, rtol=1e-5)


@pytest.mark.parametrize("case", ["single", "ties", "ragged"])
def test_gradients_are_finite_and_stay_within_the_set(kind, case):
    module = pool_of(kind)
    features, mask = sets()
    if case == "single":
        mask = mask.at[:].set(jnp.arange(SIZE) == 0)
    if case == "ties":
        features = jnp.round(features)  # several equal values, also the largest
        features = features.at[0].set(0.0)
    features = jnp.where(mask[..., None], features, jnp.nan)
    graphdef, params = nnx.split(module)

    def total(params, features):
        return jnp.square(nnx.merge(graphdef, params)(features, mask)).sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(params, features)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    outside = np.where(mask[..., None], 0, gradients[1])
    np.testing.assert_array_equal(outside, 0)
    if case == "ragged":
        for leaf in jax.tree.leaves(gradients):
            assert np.abs(leaf).max() > 0


def test_a_set_of_one_is_its_member(kind, pool):
    """… of positive values, weighted (fspool, ep) or read by a network (others)."""
    features, mask = sets(lengths=(1, 1))
    pooled = pool(jnp.abs(features), mask)
    if kind == "fspool":
        expected = pool_of(kind).knots[0] * jnp.abs(features[:, 0])
    elif kind == "seq2seq":
        gru = pool_of(kind).gru
        expected = gru(jnp.abs(features[:, :1]), mask[:, :1])[:, 0]
    elif kind == "map":
        module = pool_of(kind)
        x = module.attention.output(module.attention.value(jnp.abs(features[:, 0])))
        expected = x + module.mlp(module.norm(x))
    elif kind == "ep":
        expected = pool_of(kind).value(jnp.abs(features[:, 0]))
    else:
        expected = jnp.abs(features[:, 0])
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def by_hand(kind, x):
    """The aggregators that have a closed form, of one set [n, d]."""
    ordered = np.sort(x, axis=0)[::-1]
    return {
        "avg": x.mean(axis=0),
        "max": x.max(axis=0),
        "kmax": ordered[:3].mean(axis=0),
        "gem": (np.maximum(x, 1e-6) ** 3).mean(axis=0) ** (1 / 3),
        "cls": x[0],
        "last": x[-1],
    }[kind]


@pytest.mark.parametrize("closed", CLOSED)
def test_values_by_hand(closed):
    features, mask = sets()
    pooled = pool_of(closed)(features, mask)
    for row, x, members in zip(pooled, features, mask, strict=True):
        expected = by_hand(closed, np.asarray(x)[np.asarray(members)])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_a_k_beyond_the_set_averages_it_whole():
    features, mask = sets(lengths=(8, 2, 5))
    np.testing.assert_allclose(
        pool_of("kmax", k=6)(features, mask)[1:],
        pool_of("avg")(features, mask)[1:],
        atol=1e-6,
    )
    # The small set before it does not shrink the k of the last one.
    alone = pool_of("kmax", k=4)(features[2:], mask[2:])
    together = pool_of("kmax", k=4)(features, mask)[2:]
    np.testing.assert_array_equal(together, alone)


def test_fspool_weights_are_piecewise_linear_in_the_relative_rank():
    knots = jnp.array([[1.0], [0.0], [2.0]])  # at the ratios 0, 1/2 and 1
    weights = interpolate(knots, jnp.array([5, 3, 1]), 5)[..., 0]
    np.testing.assert_allclose(weights[0], [1, 0.5, 0, 1, 2])
    np.testing.assert_allclose(weights[1, :3], [1, 0, 2])
    np.testing.assert_allclose(weights[2, 0], 1)


def test_self_attention_prefers_what_scores_higher():
    module = pool_of("selfattn")
    features, mask = sets(lengths=(4, 2))
    module.score.kernel[...] = module.score.kernel[...] * 1e4  # as good as a choice
    pooled = module(features, mask)
    scores = module.score(jnp.tanh(module.hidden(features)))[..., 0]
    best = jnp.argmax(jnp.where(mask, scores, -jnp.inf), axis=1)
    np.testing.assert_allclose(pooled, features[jnp.arange(2), best], atol=1e-4)


def test_efficient_probing_is_the_papers_formula():
    """Each set and each query on its own, in NumPy."""
    width, count = 48, 16  # 32 does not divide 48
    module = pool_of("ep", features=width)
    module.queries[...] = 20 * module.queries[...]  # attention that is not uniform
    queries = np.asarray(module.queries[...], np.float64)
    projection = np.asarray(module.value.kernel[...], np.float64)
    assert queries.shape == (count, width)
    features = np.random.default_rng(0).normal(size=(3, 7, width))
    mask = np.arange(7) < np.array([[7], [4], [1]])
    found = module(jnp.asarray(features, jnp.float32), jnp.asarray(mask))
    for row, x, members in zip(found, features, mask, strict=True):
        x = x[members]
        values = x @ projection
        for m, part in enumerate(np.split(np.asarray(row), count)):
            scores = np.exp(x @ queries[m] / np.sqrt(width))
            own = values[:, 3 * m : 3 * m + 3]
            expected = (scores[:, None] * own).sum(axis=0) / scores.sum()
            np.testing.assert_allclose(part, expected, atol=1e-5)
    assert pool_of("ep", features=1024).queries.shape == (32, 1024)


def test_both_towers_take_every_aggregator(kind):
    config = draft(tiny.get_config())
    config.image.pool = config.text.pool = kind
    batch = {
        "images": jnp.zeros((2, tiny.SIZE, tiny.SIZE, 3)),
        "token_ids": jnp.full((2, 16), 5),
        "token_lengths": jnp.array([16, 3]),
    }
    images, captions = jax.eval_shape(build_model(config, rngs=nnx.Rngs(0)), batch)
    assert images.shape == captions.shape == (2, config.embed_dim)
