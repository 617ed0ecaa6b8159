"""Training steps and evaluation batches of toy models."""

import jax
import numpy as np

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.base.trees import flatten
from vse_jax.config import takes_regions
from vse_jax.distributed.mesh import make_mesh
from vse_jax.evaluation.encode import Captions, Images, in_batches, read_batches
from vse_jax.optimizer import Schedule
from vse_jax.train_step import Trainer


def batch_of(config, seed=0):
    rng = np.random.default_rng(seed)
    b, size = config.batch_size, config.image.size
    lengths = rng.integers(2, 17, b).astype(np.int32)
    ids = rng.integers(5, 32, (b, 16)).astype(np.int32)
    batch = {
        "token_ids": np.where(np.arange(16) < lengths[:, None], ids, 0),
        "token_lengths": lengths,
    }
    if not takes_regions(config.image):
        images = rng.normal(size=(b, size, size, 3)).astype(np.float32)
        return batch | {"images": images}
    counts = rng.integers(1, config.image.max_regions + 1, b).astype(np.int32)
    shape = (b, config.image.max_regions, config.image.feature_dim)
    regions = rng.normal(size=shape).astype(np.float32)
    regions *= (np.arange(shape[1]) < counts[:, None])[..., None]
    return batch | {"regions": regions, "region_lengths": counts}


def trainer_of(config, devices=1, steps_per_epoch=4):
    mesh = make_mesh(config, jax.devices()[:devices])
    schedule = Schedule(config, steps_per_epoch, steps_per_epoch + 1)
    return Trainer.create(config, mesh, schedule)


def set_up(config, devices=1, steps_per_epoch=4):
    trainer = trainer_of(config, devices, steps_per_epoch)
    return trainer.mesh, trainer.optimizer, trainer.initial_state(), trainer.step


def numbers(tree) -> dict[str, np.ndarray]:
    """Copies by their paths: a step donates its arrays."""
    return {path: np.array(x) for path, x in flatten(tree).items()}


def region_config():
    c = draft(tiny.get_config())
    c.image.kind = "region"
    c.image.feature_dim = 24
    c.image.max_regions = 9
    return c


def bigru(config):
    config.text.update(kind="bigru", layers=1, word_dim=16, pool="gpo")
    return config


def eval_batches(config, split, what, tokens=None, features=None, host=0, hosts=1):
    """(batch, numbers) of every evaluation batch, `what` being images or captions."""
    if what == "images":
        items = Images.of_split(config, split)
    else:
        items = Captions(config, tokens, features)
    order = in_batches(items.order, [config.eval.batch_size])
    yield from read_batches(items, order, host, hosts)
