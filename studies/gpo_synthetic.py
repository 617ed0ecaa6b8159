"""The paper's synthetic study of coefficient generators (supplement 2.3, Table 6).

    python -m studies.gpo_synthetic --workdir=runs/gpo_synthetic

A generator maps the size of a set to one coefficient per rank. Here each of four is
taught a known pooling pattern through nothing but pooled vectors: random sets are
pooled with the pattern's true coefficients, and the generator's pooled vectors have to
match them. It sees sets of 20 to 100 vectors; then its coefficients are compared with
the true ones, also for sizes that it never saw. The RMSE is printed beside the paper's,
written to table6.json in --workdir. Published for GPO, sets of 20 to 100:
average 0, max 0.005, 10-max 0.010, mean of the top half 0.006, linear 0; measured:
docs/lab/synthetic.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from jaxtyping import Array, Float, Int

from vse_jax import command_line as cli
from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.distributed.runtime import configure
from vse_jax.models.gpo import GPO, TEMPERATURE, position_encoding
from vse_jax.models.gru import BiGRU
from vse_jax.models.layers import linear
from vse_jax.models.pooling import interpolate
from vse_jax.ops import sorted_pool

Table = dict[str, dict[str, dict[str, float]]]  # range → generator → pattern → RMSE

Params = dict[str, Any]  # nested, as nnx.to_pure_dict gives them

PATTERNS = ("A", "M-1", "M-10", "T-50", "L")
SIZES = {"seen": (20, 100), "smaller": (10, 19), "larger": (101, 120)}  # both included
SMALLEST_TRAINED, LARGEST_TRAINED = SIZES["seen"]
LARGEST = 120


def _by_pattern(*values: float) -> dict[str, float]:
    return dict(zip(PATTERNS, map(float, values), strict=True))


PAPER: Table = {
    "seen": {
        "fspool": _by_pattern(0.000, 0.065, 0.030, 0.011, 0.004),
        "mlp": _by_pattern(0.012, 0.003, 0.047, 0.032, 0.022),
        "index_bigru": _by_pattern(0.002, 0.002, 0.026, 0.011, 0.008),
        "gpo": _by_pattern(0.000, 0.005, 0.010, 0.006, 0.000),
    },
    "smaller": {
        "fspool": _by_pattern(0.000, 0.017, 0.141, 0.039, 0.016),
        "mlp": _by_pattern(0.054, 0.003, 0.093, 0.096, 0.065),
        "index_bigru": _by_pattern(0.006, 0.004, 0.052, 0.049, 0.015),
        "gpo": _by_pattern(0.002, 0.010, 0.031, 0.046, 0.005),
    },
    "larger": {
        "fspool": _by_pattern(0.000, 0.070, 0.014, 0.005, 0.002),
        "mlp": _by_pattern(0.006, 0.003, 0.030, 0.026, 0.028),
        "index_bigru": _by_pattern(0.003, 0.001, 0.018, 0.007, 0.005),
        "gpo": _by_pattern(0.000, 0.004, 0.007, 0.004, 0.001),
    },
}


# ---- The patterns --------------------------------------------------------------------


def true_coefficients(
    pattern: str, lengths: Int[Array, " b"], size: int
) -> Float[Array, "b {size}"]:
    """Coefficient of each rank (largest value first) for sets of `lengths`.

    A: the average. M-1, M-10: the mean of the 1 or 10 largest. T-50: the mean of the
    larger half, the middle one of an odd number included. L: falls linearly, to 0 at
    the rank after the last. Each row sums to 1.
    """
    n = lengths[:, None]
    rank = jnp.broadcast_to(jnp.arange(size), (len(lengths), size))
    shape = {
        "A": rank < n,
        "M-1": rank < 1,
        "M-10": rank < jnp.minimum(10, n),
        "T-50": rank < (n + 1) // 2,
        "L": jnp.maximum(n - rank, 0),
    }[pattern]
    return shape / shape.sum(axis=1, keepdims=True)


def all_coefficients(lengths, size):
    return jnp.stack([true_coefficients(p, lengths, size) for p in PATTERNS])


# ---- The generators ------------------------------------------------------------------


# A generator's `weights(lengths, size)` gives each rank of sets of `lengths` its
# coefficient, 0 beyond a set's last.


class InterpolatedVector(nnx.Module):
    """Index → a learned vector of scores, read at the relative rank (as in FSPool).

    The scores start near 0, so near the average.
    """

    def __init__(self, pieces: int = 20, *, rngs: nnx.Rngs):
        start = 0.01 * jax.random.normal(rngs.params(), (pieces + 1, 1))
        self.knots = nnx.Param(start)

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        scores = interpolate(self.knots[...], lengths, size)[..., 0]
        return _softmax(scores, lengths)


class PositionMLP(nnx.Module):
    """Sines and cosines of the rank → perceptron, which knows nothing of the set.

    So a rank has the same coefficient in sets of every size: the softmax is over the
    ranks of the largest set of training, and what lies beyond a smaller set is lost.
    """

    def __init__(self, positions: int = 32, hidden: int = 32, *, rngs: nnx.Rngs):
        float32 = np.dtype(np.float32)
        self.first = linear(positions, hidden, dtype=float32, rngs=rngs)
        self.second = linear(hidden, hidden, dtype=float32, rngs=rngs)
        self.last = linear(hidden, 1, use_bias=False, dtype=float32, rngs=rngs)
        self.positions = positions

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        encoding = jnp.asarray(position_encoding(LARGEST, self.positions))
        hidden = nnx.relu(self.second(nnx.relu(self.first(encoding))))
        scores = self.last(hidden)[:, 0] / TEMPERATURE
        total = jax.nn.logsumexp(scores[:LARGEST_TRAINED])
        coefficients = jnp.exp(scores - total)[:size]
        return jnp.where(_mask(lengths, size), coefficients, 0)


class IndexBiGRU(nnx.Module):
    """GPO with a learned vector for each rank instead of its sines and cosines.

    The vectors start as PyTorch's embeddings do, normally distributed. Ranks that
    training never reaches keep their initial vectors.
    """

    def __init__(self, positions: int = 32, hidden: int = 32, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (LARGEST, positions)))
        self.gru = BiGRU(positions, hidden, rngs=rngs)
        float32 = np.dtype(np.float32)
        self.linear = linear(hidden, 1, use_bias=False, dtype=float32, rngs=rngs)

    def weights(self, lengths: Int[Array, " b"], size: int) -> Float[Array, "b {size}"]:
        vectors = self.table[...][:size]
        vectors = jnp.broadcast_to(vectors, (len(lengths), *vectors.shape))
        forward, backward = self.gru(vectors, _mask(lengths, size))
        scores = self.linear((forward + backward) / 2)[..., 0]
        return _softmax(scores, lengths)


GENERATORS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "fspool": lambda rngs: InterpolatedVector(rngs=rngs),
    "mlp": lambda rngs: PositionMLP(rngs=rngs),
    "index_bigru": lambda rngs: IndexBiGRU(rngs=rngs),
    "gpo": lambda rngs: GPO(rngs=rngs),
}


def _mask(lengths, size):
    return jnp.arange(size) < lengths[:, None]


def _softmax(scores, lengths):
    mask = _mask(lengths, scores.shape[1])
    return jax.nn.softmax(scores / TEMPERATURE, axis=1, where=mask)


# ---- Training ------------------------------------------------------------------------

_FEATURES = 16  # values of a vector; each is a set of numbers of its own
_STEPS_PER_CALL = 50  # between looks at the progress


def random_sets(
    key: Array, count: int
) -> tuple[Float[Array, "b k d"], Int[Array, " b"]]:
    """Sets of 20 to 100 vectors: their values, U(0, 1), and their sizes."""
    size_key, value_key = jax.random.split(key)
    lengths = jax.random.randint(
        size_key, (count,), SMALLEST_TRAINED, LARGEST_TRAINED + 1
    )
    shape = (count, LARGEST_TRAINED, _FEATURES)
    return jax.random.uniform(value_key, shape), lengths


def pooling_loss(
    generator: Any,
    features: Float[Array, "b k d"],
    lengths: Int[Array, " b"],
    coefficients: Float[Array, "b k"],
) -> Float[Array, ""]:
    """Mean squared error of the generator's pooled vectors.

    Args:
        coefficients: those that make the target.
    """
    size = features.shape[1]
    mask = _mask(lengths, size)
    pooled = sorted_pool(features, generator.weights(lengths, size), mask)
    target = sorted_pool(features, coefficients, mask)
    return jnp.mean((pooled - target) ** 2)


@dataclass(frozen=True)
class Recipe:
    """How each generator is trained; the paper gives none."""

    steps: int = 3000
    batch_size: int = 16  # random sets a step
    learning_rate: float = 2e-3  # at the start; falls to 0 along a cosine
    seed: int = 0


def train_generator(
    name: str, recipe: Recipe
) -> tuple[nnx.GraphDef, Params, Float[np.ndarray, "steps patterns"]]:
    """Trains one of GENERATORS on every pattern.

    By Adam. All generators see the same sets.

    Returns:
        The generator's graph definition; the trained parameters, with an axis for
        PATTERNS in front of each; the losses.
    """
    make, steps = GENERATORS[name], recipe.steps
    init_key, data_key = jax.random.split(jax.random.key(recipe.seed))
    init_key = jax.random.fold_in(init_key, list(GENERATORS).index(name))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    # Adam treats each element on its own, so one optimizer serves all patterns.
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, steps))

    @jax.vmap
    def initial_params(key):
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))

    def step(number, state):
        params, opt_state, losses = state
        key = jax.random.fold_in(data_key, number)
        features, lengths = random_sets(key, recipe.batch_size)

        def loss(params, coefficients):
            generator = nnx.merge(graphdef, params)
            return pooling_loss(generator, features, lengths, coefficients)

        # One pattern after the other: batched, the GRU's products take longer.
        coefficients = all_coefficients(lengths, LARGEST_TRAINED)
        found, gradients = jax.lax.map(
            lambda arguments: jax.value_and_grad(loss)(*arguments),
            (params, coefficients),
        )
        updates, opt_state = optimizer.update(gradients, opt_state)
        params = optax.apply_updates(params, updates)
        return params, opt_state, losses.at[number].set(found)

    @jax.jit
    def advance(start, end, state):
        return jax.lax.fori_loop(start, end, step, state)

    params = initial_params(jax.random.split(init_key, len(PATTERNS)))
    state = params, optimizer.init(params), jnp.zeros((steps, len(PATTERNS)))
    for number in progress(range(steps), name, unit="step"):
        if number % _STEPS_PER_CALL == 0:
            end = min(number + _STEPS_PER_CALL, steps)
            state = jax.block_until_ready(advance(number, end, state))
    params, _, losses = state
    return graphdef, params, np.asarray(losses)


# ---- Comparison ----------------------------------------------------------------------


def rmse(
    predicted: Float[Array, "b k"],
    true: Float[Array, "b k"],
    lengths: Int[Array, " b"],
) -> Float[Array, " b"]:
    """Root mean squared difference over the ranks of each set."""
    squares = jnp.where(_mask(lengths, true.shape[1]), (predicted - true) ** 2, 0)
    return jnp.sqrt(squares.sum(axis=1) / lengths)


def measure(graphdef: nnx.GraphDef, params: Params) -> dict[str, dict[str, float]]:
    """RMSE by range of sizes and pattern, each the mean over the range's sizes.

    Args:
        params: as from `train_generator`.
    """
    first = min(smallest for smallest, _ in SIZES.values())
    lengths = jnp.arange(first, LARGEST + 1)

    def generate(params):
        return nnx.merge(graphdef, params).weights(lengths, LARGEST)

    @jax.jit
    def by_size(params):
        predicted = jax.lax.map(generate, params)
        true = all_coefficients(lengths, LARGEST)
        return jax.vmap(rmse, (0, 0, None))(predicted, true, lengths)

    errors = np.asarray(by_size(params), np.float64)
    return {
        name: _by_pattern(*errors[:, smallest - first : largest + 1 - first].mean(1))
        for name, (smallest, largest) in SIZES.items()
    }


def format_table(table: Table) -> str:
    """The table, each value with the paper's behind it in parentheses."""
    lines = ["RMSE of the coefficients (the paper's in parentheses)"]
    for name, rows in table.items():
        smallest, largest = SIZES[name]
        title = f"{name} {smallest}–{largest}"
        lines += ["", f"{title:14}" + "".join(f"{p:>9}        " for p in PATTERNS)]
        for generator, row in rows.items():
            papers = PAPER[name][generator]
            cells = [f"{row[p]:9.4f} ({papers[p]:.3f})" for p in PATTERNS]
            lines.append(f"  {generator:12}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def run_study(recipe: Recipe, workdir: Path) -> Table:
    """Trains all generators on all patterns; prints and writes workdir/table6.json.

    Raises:
        InputError: the folder holds a run of another kind.
    """
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir}: holds checkpoints of another run")
    workdir.mkdir(parents=True, exist_ok=True)
    table: Table = {name: {} for name in SIZES}
    for generator in GENERATORS:
        graphdef, params, _ = train_generator(generator, recipe)
        for name, row in measure(graphdef, params).items():
            table[name][generator] = row
    text = json.dumps(table, indent=1)
    write_atomically(workdir / "table6.json", (text + "\n").encode())
    print(format_table(table))
    return table


def main(_) -> None:
    workdir = flags.FLAGS.workdir
    if workdir is None:
        raise InputError("--workdir: needed, for the results")
    configure(Config())
    run_study(Recipe(), workdir)


if __name__ == "__main__":
    flags.DEFINE(cli.PathParser(), "workdir", None, "Folder of the results.")
    app.run(cli.program(main), flags_parser=cli.parse)
