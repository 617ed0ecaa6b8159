"""Training equals the official program's, step by step.

The golden trajectories hold the batches of short official runs and what became of them;
here the same batches go through `train_step`, `Schedule` and `Optimizer`.
"""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from tests.helpers import golden_weights
from tests.helpers.drafts import draft
from vse_jax.checkpoints.torch import keys
from vse_jax.config import Config
from vse_jax.distributed.mesh import batch_sharding, make_mesh, put_batch
from vse_jax.models.build import build_model, split_model
from vse_jax.optimizer import Schedule
from vse_jax.train_step import Trainer, TrainState

pytestmark = pytest.mark.golden

# Parameters that the loss does not depend on: softmax ignores what all keys of a query
# have in common, batch normalisation a constant before it. Their gradients are rounding
# noise, which Adam divides by its own size: no two programs move them alike.
NO_GRADIENT = re.compile(r"attention\.self\.key\.bias|mlp\.layers\.0\.bias")
# One static size for all batches of a run; padding must not matter.
REGIONS = TOKENS = 9


def region_config() -> Config:
    c = draft()
    c.batch_size = 8
    c.image.kind = "region"
    c.image.feature_dim = 48
    c.image.max_regions = REGIONS
    c.loss.ramp_epoch = -1
    c.optimizer.rules = common.region_rules()
    return c


def grid_config(backbone_warmup: int) -> Config:
    c = draft()
    c.batch_size = 6
    c.image.size = 64
    c.image.drop = 0.0
    c.image.backbone.layers = (1, 1, 1, 1)
    c.optimizer.rules = common.grid_rules(backbone_warmup=backbone_warmup)
    return c


@dataclass(frozen=True)
class Case:
    """A golden run: what the official program was told, in our terms."""

    file: str
    config: Config
    image_tower: keys.Table
    steps_per_epoch: int

    @property
    def table(self) -> keys.Table:
        image = self.image_tower.with_prefix("img_enc.", "image/")
        return image + keys.BERT_ENCODER.with_prefix("txt_enc.", "text/")


CASES = (
    Case("trajectory_region", region_config(), keys.REGION_ENCODER, 4),
    Case("trajectory_grid", grid_config(0), keys.GRID_ENCODER, 2),
    Case("trajectory_grid_gradual", grid_config(1), keys.GRID_ENCODER, 2),
)


@dataclass(frozen=True)
class Run:
    """What a case's batches led to here.

    scalars: of each step. tensors: parameters and statistics by official key, at the
    start and after each epoch.
    """

    golden: dict[str, np.ndarray]
    case: Case
    scalars: list[dict[str, float]]
    tensors: list[dict[str, np.ndarray]]

    def series(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.scalars])

    def of_epoch(self, epoch: int, kind: str) -> dict[str, np.ndarray]:
        """The golden arrays 'epoch<epoch>.<kind>.<key>', by key."""
        start = f"epoch{epoch}.{kind}."
        return {
            name.removeprefix(start): array
            for name, array in self.golden.items()
            if name.startswith(start)
        }


def batch_of(golden: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    def get(name):
        return golden[f"batch{number}.{name}"]

    def pad(array, size):
        after = [(0, 0)] * array.ndim
        after[1] = (0, size - array.shape[1])
        return np.pad(array, after)

    batch = {
        "token_ids": pad(get("token_ids"), TOKENS).astype(np.int32),
        "token_lengths": get("text_lengths").astype(np.int32),
    }
    if f"batch{number}.image_lengths" not in golden:  # pixels, channels first
        images = get("images").astype(np.float32).transpose(0, 2, 3, 1)
        return batch | {"images": images}
    lengths = get("image_lengths").astype(np.int32)
    return batch | {
        "regions": pad(get("images"), REGIONS),
        "region_lengths": lengths,
    }


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.file)
def run(request) -> Run:
    case: Case = request.param
    golden = golden_weights.load(case.file)
    c = case.config
    c.embed_dim = 32
    c.text.vocab_size = 120
    c.text.layers = 1
    c.text.ffn = 1024
    c.text.dropout = 0.0
    c.optimizer.lr_update = 2

    model = golden_weights.golden_module(
        lambda: build_model(c, rngs=nnx.Rngs(0)), case.table, prefix=""
    )
    _, start = split_model(model)
    # The original keeps the last partial batch in its ramp's N; there was none.
    schedule = Schedule(c, case.steps_per_epoch, ramp_steps=case.steps_per_epoch)
    mesh = make_mesh(c, jax.devices()[:1])
    trainer = Trainer.create(c, mesh, schedule)
    optimizer, step = trainer.optimizer, trainer.step
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        **start,
        opt_state=optimizer.init(start["params"]),
        rng=jax.random.key(0),
    )

    def official(state):
        params = keys.to_torch(state.params, case.table)
        stats = keys.to_torch(state.batch_stats, case.table)
        # Copies: the next step is given these buffers.
        return {key: np.array(array) for key, array in {**params, **stats}.items()}

    scalars, tensors = [], [official(state)]
    for number in range(len(golden["losses"])):
        batch = put_batch(batch_of(golden, number), batch_sharding(mesh))
        groups = optimizer.trainable_groups(schedule.epoch(number))
        state, metrics = step(state, batch, groups)
        scalars.append({name: float(x) for name, x in metrics.items()})
        if (number + 1) % case.steps_per_epoch == 0:
            tensors.append(official(state))
    return Run(golden, case, scalars, tensors)


def check_series(run, actual, expected, first_rtol, rtol):
    """A tight tolerance in the first epoch; rounding then moves the runs apart."""
    first = run.case.steps_per_epoch
    np.testing.assert_allclose(actual[:first], expected[:first], rtol=first_rtol)
    np.testing.assert_allclose(actual, expected, rtol=rtol)


def test_losses(run):
    check_series(run, run.series("loss"), run.golden["losses"], 1e-4, 1e-3)


def test_gradient_norms_before_clipping(run):
    expected = run.golden["grad_norms_before_clip"]
    check_series(run, run.series("grad_norm"), expected, 1e-4, 1e-3)


def test_learning_rates(run):
    rate = run.series("lr")
    np.testing.assert_allclose(rate, run.golden["learning_rates"], rtol=1e-6)


def displacements(run):
    """Per epoch and parameter: key, size, distance from the start here, golden's."""
    for epoch, tensors in enumerate(run.tensors[1:]):
        expected = run.of_epoch(epoch, "delta_norm")
        parameters = {key for key in tensors if ".running_" not in key}
        assert expected.keys() == parameters
        for key, distance in expected.items():
            change = tensors[key] - run.tensors[0][key]
            yield epoch, key, change.size, np.linalg.norm(change), distance


def test_displacement_of_each_parameter(run):
    for epoch, key, _, actual, expected in displacements(run):
        if not NO_GRADIENT.search(key):
            # A CNN's scale, near 1, moves by a few units of float32 rounding a step.
            np.testing.assert_allclose(
                actual, expected, rtol=1e-3, err_msg=f"{key} after epoch {epoch}"
            )


def test_parameters_without_gradient_hardly_move(run):
    checked = set()
    for epoch, key, size, actual, expected in displacements(run):
        if NO_GRADIENT.search(key):
            checked.add(key)
            steps = run.case.steps_per_epoch * (epoch + 1)
            factor = 0.1 if "bert" in key else 1.0
            # Adam moves a parameter with a steady gradient by its rate each step.
            moved = factor * run.golden["learning_rates"][:steps].sum() * size**0.5
            assert max(actual, expected) < 0.2 * moved
    assert len(checked) == (2 if run.case.config.image.kind == "region" else 1)


def test_running_statistics(run):
    for epoch, tensors in enumerate(run.tensors[1:]):
        expected = run.of_epoch(epoch, "buffer")
        for key, array in expected.items():
            # A running mean takes in the bias before it, and with it that one's noise.
            atol = 1e-3 if key.endswith("mean") else 0
            np.testing.assert_allclose(
                tensors[key], array, rtol=1e-5, atol=atol, err_msg=key
            )
        frozen = {key for key in tensors if ".running_" in key} - expected.keys()
        assert bool(frozen) == (run.case.config.image.kind == "grid")
        for key in frozen:
            np.testing.assert_array_equal(tensors[key], run.tensors[0][key])
