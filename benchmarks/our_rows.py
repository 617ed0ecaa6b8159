"""Our side of the rows, through what main.py runs."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import inputs, rows
from benchmarks.rows import Ready, repeated
from vse_jax.base.progress import hide
from vse_jax.config import Config, with_fields
from vse_jax.data.collate import Batch, shapes_of
from vse_jax.data.dataset import read_split
from vse_jax.data.images import own_process
from vse_jax.data.loader import TrainData
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.distributed import runtime
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import (
    batch_sharding,
    make_mesh,
    on_one_device,
    put_batch,
)
from vse_jax.evaluation.encode import Embedder
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.models.build import build_image_encoder, build_text_encoder
from vse_jax.models.gpo import GPO
from vse_jax.ops import disable_malloc_trim, place
from vse_jax.optimizer import Schedule
from vse_jax.train_step import Trainer

_EPOCH = 1000  # steps
_OPEN = 2  # the first epoch with all groups open, the hardest negatives and no ramp


def prepare() -> None:
    """What main.py sets before a run of the recipes."""
    hide()
    own_process()
    disable_malloc_trim()
    runtime.configure(inputs.grid_config())


def warm(run: Callable[[], object]) -> Ready:
    """What is ready after two calls."""
    run()
    run()
    return Ready(repeated(run))


def _jitted(function: Callable, *arguments) -> Ready:
    arguments = jax.device_put(arguments)
    compiled = jax.jit(function).lower(*arguments).compile()
    return warm(lambda: jax.block_until_ready(compiled(*arguments)))


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def matrix_product() -> Ready:
    a, b = jax.random.normal(jax.random.key(0), (2, 2048, 2048))
    return _jitted(jnp.matmul, a, b)


def gpo(count: int, size: int, dimensions: int) -> Ready:
    """Gradients in the vectors and in the generator's parameters, of full sets."""
    graphdef, params = nnx.split(GPO(rngs=nnx.Rngs(0)))
    cotangent = _normal((count, dimensions))

    def loss(params, features, mask):
        return (nnx.merge(graphdef, params)(features, mask) * cotangent).sum()

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    features, mask = _normal((count, size, dimensions)), jnp.ones((count, size), bool)
    return _jitted(gradient, params, features, mask)


def cnn(backward: bool) -> Ready:
    config = inputs.grid_config(rows.CNN_SIZE, rows.CNN_BATCH)
    mesh = make_mesh(config)
    tower: Any = build_image_encoder(config, rngs=nnx.Rngs(0))
    graphdef, *parts = nnx.split(tower.backbone, nnx.Param, ...)

    def run(params, stats, images):
        backbone = place(nnx.merge(graphdef, params, stats), mesh)
        return backbone(images, train=backward)

    images = inputs.images(config, rows.CNN_BATCH)["images"]
    return _pass(run, parts, images, backward)


def bert(backward: bool) -> Ready:
    """BERT's last hidden state; going back, only that of tokens has a gradient."""
    config = inputs.grid_config()
    mesh = make_mesh(config)
    tower: Any = build_text_encoder(config, rngs=nnx.Rngs(0))
    graphdef, *parts = nnx.split(tower, nnx.PathContains("bert"), ...)

    def run(params, rest, batch):
        tower = place(nnx.merge(graphdef, params, rest), mesh)
        rngs = nnx.Rngs(dropout=1) if backward else None
        features = tower.features(batch, train=backward, rngs=rngs)
        mask = jnp.arange(features.shape[1]) < batch["token_lengths"][:, None]
        return jnp.where(mask[..., None], features, 0)

    batch = inputs.captions(config, rows.CAPTIONS, train=False)
    return _pass(run, parts, batch, backward)


def _pass(run: Callable, parts: list[nnx.State], batch, backward: bool) -> Ready:
    """run(*parts, batch), or its gradient in the first of the two parts."""
    params, rest = map(nnx.to_pure_dict, parts)
    if not backward:
        return _jitted(run, params, rest, batch)
    cotangent = _normal(jax.eval_shape(run, params, rest, batch).shape)

    def loss(params, rest, batch):
        return (run(params, rest, batch) * cotangent).sum()

    return _jitted(jax.value_and_grad(loss), params, rest, batch)


def training_step(config: Config, batch: Batch) -> Callable[[], float]:
    """A step on one device, all groups open; returns the loss. The batch stays put."""
    runtime.configure(config)
    config, mesh = on_one_device(config)
    trainer = Trainer.create(config, mesh, Schedule(config, _EPOCH, _EPOCH))
    state = trainer.initial_state()
    state = dataclasses.replace(state, step=state.step + _OPEN * _EPOCH)
    groups = trainer.optimizer.trainable_groups(_OPEN)
    step = trainer.lower_step(shapes_of(batch), groups).compile()
    placed = put_batch(batch, batch_sharding(mesh))

    def run() -> float:
        nonlocal state
        state, scalars = step(state, placed)
        jax.block_until_ready(state)
        return float(scalars["loss"])

    return run


def training(kind: str) -> Ready:
    config = inputs.recipe(kind)
    return warm(training_step(config, inputs.training_batch(config)))


def first_step() -> Ready:
    """From the start of Python to the end of the first step."""

    def turn() -> float:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "benchmarks.our_rows"]
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True)
            return time.perf_counter() - start

    return Ready(turn)


def metrics() -> Ready:
    images, captions = inputs.embeddings(5000, 1024)
    return Ready(repeated(lambda: retrieval_metrics(images, captions, 5)))


def encode() -> Ready:
    """`Embedder.embed` over image files, each read and encoded once."""
    config = with_fields(inputs.grid_config(), {"eval.batch_size": rows.ENCODED})
    config = inputs.with_photographs(config, rows.ENCODED)
    split = read_split(config, "train")
    mesh = make_mesh(config)
    trainer = Trainer.create(config, mesh, Schedule(config, _EPOCH, _EPOCH))
    model = trainer.initial_state().weights
    embedder = Embedder(
        config, trainer.graphdef, trainer.abstract_model, mesh, CompileCache()
    )
    embedder.embed(model, split)
    return Ready(repeated(lambda: embedder.embed(model, split)))


def pipeline(size: int) -> Ready:
    """Batches of the training pipeline, after two that pay for its start."""
    config = inputs.grid_config(size, rows.PIPELINE_BATCH)
    config = inputs.with_photographs(config, 2 * rows.PIPELINE_BATCH)
    split = read_split(config, "train")
    data = TrainData(config, split, caption_tokenizer(config)(split.captions))

    def turn() -> float:
        with data.batches() as batches:
            return inputs.time_batches(batches)

    turn()
    return Ready(turn)


if __name__ == "__main__":  # what first_step measures
    prepare()
    _config = inputs.grid_config()
    training_step(_config, inputs.training_batch(_config))()
