"""Every encoder and pooling as ONNX, run in a process without JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import steps, tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.export import encoder_functions, onnx_file
from vse_jax.checkpoints.onnx_program import onnx_program
from vse_jax.config import POOL_CLASSES
from vse_jax.models.build import build_model, split_model

# Runs each program of a folder on its inputs, three items and then one.
RUN = """
import sys
from pathlib import Path
sys.modules["jax"] = None  # an import of it would raise
import numpy as np, onnxruntime
for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(file)
    inputs = dict(np.load(file.with_suffix(".npz")))
    wanted = inputs.pop("wanted")
    for count in (3, 1):
        given = {name: rows[:count] for name, rows in inputs.items()}
        (found,) = session.run(None, given)
        difference = np.abs(found - wanted[:count]).max()
        print(file.stem, difference)
        assert difference <= 1e-5, file.stem
"""


def _models():
    """(name, tower, config) of everything that computes differently."""
    for pool in POOL_CLASSES:
        config = steps.region_config()
        config.image.pool = pool
        yield f"region-{pool}", "image", config
    for name, value in (("stem", "patch"), ("groups", 4), ("block", "torchvision")):
        config = draft(tiny.get_config())
        setattr(config.image.backbone, name, value)
        yield f"grid-{name}", "image", config
    for pool in ("map", "gpo"):
        config = draft(tiny.get_config())
        config.image.update(kind="vit", pool=pool, size=32)
        config.image.vit.update(patch=8, hidden=32, heads=4, layers=2, ffn=64)
        yield f"vit-{pool}", "image", config
    for pool in ("gpo", "last"):
        config = draft(tiny.get_config())
        config.text.update(kind="siglip", pool=pool)
        yield f"siglip-{pool}", "text", config
    yield "bert", "text", draft(tiny.get_config())
    yield "bigru", "text", steps.bigru(draft(tiny.get_config()))


@pytest.mark.system
def test_every_encoder_and_pooling_runs_without_jax(tmp_path):
    names = []
    for name, tower, config in _models():
        config.text.vocab_size = 100
        graphdef, model = split_model(build_model(config, rngs=nnx.Rngs(0)))
        encoder = encoder_functions(config, graphdef, model)[tower]
        rng = np.random.default_rng(0)
        inputs = {}
        for field, (shape, dtype) in encoder.inputs.items():
            if field.endswith("lengths"):
                inputs[field] = np.array([3, 1, 5], dtype)
            elif dtype is np.float32:
                inputs[field] = rng.normal(size=(3, *shape[1:])).astype(dtype)
            else:
                inputs[field] = rng.integers(5, 99, (3, *shape[1:])).astype(dtype)
        wanted = jax.jit(encoder.run)(encoder.arrays, *inputs.values())
        np.savez(tmp_path / f"{name}.npz", **inputs, wanted=wanted)
        with onnx_file(encoder, name) as file:
            for part in file.parent.iterdir():
                part.rename(tmp_path / part.name)
        names.append(name)
    command = [sys.executable, "-I", "-c", RUN, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines()} == set(names)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (lambda x: jnp.cumsum(x, axis=1), "cumsum"),
        (lambda x: x.at[:, 0].set(0.0), "scatter"),
        (lambda x: jax.lax.top_k(x, 2)[0], "top_k"),
        (lambda x: jnp.argsort(x, axis=1).astype(jnp.float32), "sort"),
    ],
)
def test_an_operation_without_a_translation_is_named(run, what):
    inputs = {"x": ((1, 4), np.float32)}
    with pytest.raises(InputError, match=f"ONNX: .*{what}"):
        onnx_program(run, inputs, "y")
