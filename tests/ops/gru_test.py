"""The recurrence of GRUs: the accelerators' gradient equals JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.ops import gru

T, G, B, H = 7, 2, 3, 4


@pytest.mark.parametrize("rows", [1, B])  # of the inputs, which all rows may share
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_for_accelerators_equals_jaxs_own(dtype, rows, monkeypatch):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mask = np.arange(T)[:, None, None] < np.array([[T, 2, 5], [1, T, 4]])
    mask[:, 1] = mask[::-1, 1]  # read backward: padding comes first
    kernel = normal(G, H, 3 * H).astype(dtype)
    arguments = normal(T, G, rows, 3 * H), kernel, normal(G, 1, 3 * H)
    cotangent = normal(T, G, B, H)
    results = []
    for accelerators in (False, True):
        monkeypatch.setattr(gru, "on_accelerators", lambda _, a=accelerators: a)
        states, pull = jax.vjp(
            lambda x, k, b: gru.recur(x, jnp.asarray(mask), k, b), *arguments
        )
        results.append((states, *pull(cotangent)))
    exact = dtype == "float32"
    for reference, found in zip(*results, strict=True):
        assert found.dtype == reference.dtype
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(
            np.asarray(found, np.float32),
            np.asarray(reference, np.float32),
            rtol=1e-5 if exact else 0.02,
            atol=(1e-6 if exact else 0.02) * scale,
        )
    assert (results[1][0][~mask] == 0).all()


def test_the_gradients_loop_has_one_product_a_gate_and_no_gates(monkeypatch):
    monkeypatch.setattr(gru, "on_accelerators", lambda _: True)
    arguments = jnp.zeros((T, G, B, 3 * H)), jnp.ones((T, G, B), bool)
    weights = jnp.zeros((G, H, 3 * H)), jnp.zeros((G, 1, 3 * H))
    gradient = jax.grad(lambda *w: gru.recur(*arguments, *w).sum())
    loops = [
        equation.params["jaxpr"].jaxpr
        for equation in jax.make_jaxpr(gradient)(*weights).eqns
        if equation.primitive.name == "scan" and equation.params["reverse"]
    ]
    assert len(loops) == 1
    names = [equation.primitive.name for equation in loops[0].eqns]
    assert names.count("dot_general") == 3
    assert not {"tanh", "logistic"} & {*names}
