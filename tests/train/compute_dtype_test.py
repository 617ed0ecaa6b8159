"""bfloat16 towers: what must stay float32 does, in every equation of the step."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import batch_of, bigru, region_config, trainer_of
from vse_jax.optimizer import Optimizer
from vse_jax.train_step import train_step

# Softmax, norms, roots and gates lose too much in eight bits of mantissa.
DELICATE = {
    *("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "tanh", "logistic"),
    *("reduce_max", "argmax", "sort", "cumsum", "integer_pow", "pow"),
}
# Only these files may compute in bfloat16; others may at most convert from or to it.
TOWERS = {"bert.py", "resnet.py", "batch_norm.py", "gru.py", "image_encoder.py"}
TOWERS |= {"text_encoder.py", "layers.py", "transformer.py", "vit.py", "siglip.py"}
TOWERS |= {"conv.py"}
# And these never see it.
FLOAT32_ONLY = {"losses.py", "optimizer.py"}

PROJECT = ("vse_jax", "tests")


def equations(jaxpr, line=("", 0), cached=False):
    """(equation, (file, line)) of all of them, inner functions and loops included.

    The line is the innermost of this project that led to the equation. jax traces its
    own jitted functions once for all callers: there (`cached`) the call's line counts.
    """
    for equation in jaxpr.eqns:
        traceback = equation.source_info.traceback
        frames = traceback.frames if traceback and not cached else ()
        ours = (f for f in frames if set(PROJECT) & set(Path(f.file_name).parts))
        here = next(((f.file_name, f.line_num) for f in ours), line)
        shared = equation.primitive.name in ("jit", "pjit", "custom_jvp_call")
        shared &= equation.params.get("name") != "_run"  # ours: ops/blocks.py
        inner = [
            getattr(value, "jaxpr", value)
            for value in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
            )
            if hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ]
        for other in inner:
            yield from equations(other, here, cached or shared)
        if not inner:
            yield equation, here


def violations(jaxpr) -> list[str]:
    """Where something that must stay float32 is bfloat16."""
    found = []
    for equation, (file, line) in equations(jaxpr):
        values = [*equation.invars, *equation.outvars]
        if not any(getattr(v.aval, "dtype", None) == jnp.bfloat16 for v in values):
            continue
        name, place = equation.primitive.name, Path(file).name
        # GELU's derivative, e^(−x²/2), and SigLIP's own formula for it, of tanh and x³,
        # are as exact as the activations around them.
        parts = {"bert.py": ("exp",), "transformer.py": ("tanh", "integer_pow")}
        gelu = name in parts.get(place, ()) and "gelu" in line_of(file, line)
        wrong = (
            (name in DELICATE and not gelu)
            or (place not in TOWERS and name != "convert_element_type")
            or place in FLOAT32_ONLY
        )
        if wrong:
            found.append(f"{name} in {place}:{line}")
    return found


def line_of(file: str, number: int) -> str:
    return Path(file).read_text().splitlines()[number - 1]


def step_of(config):
    """(the training step as equations, shapes of its results)"""
    config.compute_dtype = "bfloat16"
    trainer = trainer_of(config)
    groups = trainer.optimizer.trainable_groups(0)
    step = functools.partial(train_step, groups=groups, trainer=trainer)
    return jax.make_jaxpr(step, return_shape=True)(trainer.abstract, batch_of(config))


def vit_siglip():
    config = draft(tiny.get_config())
    config.image.kind, config.text.kind = "vit", "siglip"
    sizes = {"patch": 8, "hidden": 32, "layers": 1, "heads": 2, "ffn": 64}
    config.image.vit.update(sizes)
    return config


CONFIGS = {
    "grid_bert": lambda: draft(tiny.get_config()),
    "region_bigru": lambda: bigru(region_config()),
    "vit_siglip": vit_siglip,
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("pool", ["gpo", "selfattn", "map"])
def test_what_must_stay_float32_does(kind, pool):
    config = CONFIGS[kind]()
    config.image.pool = config.text.pool = pool
    program, results = step_of(config)
    text = str(program)
    assert text.count("bf16") > 50  # the towers do use it
    assert violations(program.jaxpr) == []
    dtypes = {x.dtype for x in jax.tree.leaves(results)}
    assert not dtypes & {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}


def test_a_silent_bfloat16_is_found():
    half = jnp.ones((4, 3), jnp.bfloat16)
    for function in (jax.nn.softmax, lambda x: x @ x.T, lambda x: x + 1):
        assert violations(jax.make_jaxpr(function)(half).jaxpr)
    assert not violations(
        jax.make_jaxpr(lambda x: x.astype(jnp.float32) + 1)(half).jaxpr
    )


def test_a_bfloat16_of_the_optimizer_is_named_by_its_line(tiny_config, monkeypatch):
    update = Optimizer.update

    def coarse(self, grads, state, params, rate, keys):
        return update(self, grads, state, params, rate.astype(jnp.bfloat16), keys)

    monkeypatch.setattr(Optimizer, "update", coarse)
    program, _ = step_of(tiny_config)
    assert any(re.search(r" optimizer\.py:\d\d", v) for v in violations(program.jaxpr))
