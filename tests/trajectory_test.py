"""Training equals the official program's, step by step.

The golden trajectories hold the batches of short official runs and what became of them;
here the same batches go through `train_step`, `Schedule` and `Optimizer`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import common
from tests import golden_weights
from vse_jax.convert import keys
from vse_jax.models.vse import VSE
from vse_jax.optimizer import Optimizer, Schedule
from vse_jax.sharding import batch_sharding, make_mesh, put_batch
from vse_jax.state import TrainState, abstract_state, split_model
from vse_jax.train import compile_step

# One static size for all batches of a run; padding must not matter.
REGIONS = TOKENS = 9


def region_config() -> ConfigDict:
    c = common.base()
    c.batch_size = 8
    c.image.kind = "region"
    c.image.feature_dim = 48
    c.image.max_regions = REGIONS
    c.loss.ramp_epoch = -1
    c.optimizer.rules = common.region_rules()
    return c


def grid_config(backbone_warmup: int) -> ConfigDict:
    c = common.base()
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
    config: ConfigDict
    image_tower: keys.Table
    steps_per_epoch: int

    @property
    def table(self) -> keys.Table:
        image = self.image_tower.under("img_enc.", "image/")
        return image + keys.BERT_TOWER.under("txt_enc.", "text/")


CASES = (
    Case("trajectory_region", region_config(), keys.REGION_TOWER, 4),
    Case("trajectory_grid", grid_config(0), keys.GRID_TOWER, 2),
    Case("trajectory_grid_gradual", grid_config(1), keys.GRID_TOWER, 2),
)


@dataclass(frozen=True)
class Run:
    """What a case's batches led to here.

    scalars: of the steps. tensors: parameters and statistics after each epoch, by
    official key.
    """

    golden: dict[str, np.ndarray]
    case: Case
    scalars: list[dict[str, float]]
    tensors: list[dict[str, np.ndarray]]

    def series(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.scalars])


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
        lambda: VSE(c, rngs=nnx.Rngs(0)), case.table, prefix=""
    )
    graphdef, start = split_model(model)
    optimizer = Optimizer(c.optimizer, start["params"])
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        **start,
        opt_state=optimizer.init(start["params"]),
        rng=jax.random.key(0),
    )
    # The original keeps the last partial batch in its ramp's N; there was none.
    schedule = Schedule.from_config(
        c, case.steps_per_epoch, ramp_steps=case.steps_per_epoch
    )
    mesh = make_mesh(c, jax.devices()[:1])
    abstract = abstract_state(c, optimizer, mesh)
    step = compile_step(c, graphdef, optimizer, schedule, mesh, abstract)

    scalars, tensors = [], []
    for number in range(len(golden["losses"])):
        batch = put_batch(batch_of(golden, number), batch_sharding(mesh))
        groups = optimizer.open_groups(schedule.epoch(number))
        state, metrics = step(state, batch, groups)
        scalars.append({name: float(x) for name, x in metrics.items()})
        if (number + 1) % case.steps_per_epoch == 0:
            params = keys.to_torch(state.params, case.table)
            stats = keys.to_torch(state.batch_stats, case.table)
            # Copies: the next step is given these buffers.
            tensors.append({k: np.array(x) for k, x in {**params, **stats}.items()})
    return Run(golden, case, scalars, tensors)


def test_losses(run):
    loss, expected = run.series("loss"), run.golden["losses"]
    first = run.case.steps_per_epoch
    np.testing.assert_allclose(loss[:first], expected[:first], rtol=1e-4)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_gradient_norms_before_clipping(run):
    norm, expected = run.series("grad_norm"), run.golden["grad_norms_before_clip"]
    first = run.case.steps_per_epoch
    np.testing.assert_allclose(norm[:first], expected[:first], rtol=1e-3)
    np.testing.assert_allclose(norm, expected, rtol=1e-2)


def test_learning_rates(run):
    rate = run.series("lr")
    np.testing.assert_allclose(rate, run.golden["learning_rates"], rtol=1e-6)
