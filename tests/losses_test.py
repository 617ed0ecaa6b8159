import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_weights
from vse_jax.losses import hinge_loss


@pytest.mark.parametrize("case", ["b6", "b33"])
@pytest.mark.parametrize("negatives", ["sum", "max"])
def test_loss_and_gradients_equal_the_official_ones(case, negatives):
    golden = golden_weights.load("loss", f"{case}.")
    images, captions = jnp.asarray(golden["images"]), jnp.asarray(golden["captions"])
    loss, gradients = jax.value_and_grad(hinge_loss, argnums=(0, 1))(
        images, captions, float(golden["margin"]), negatives == "max"
    )
    np.testing.assert_allclose(loss, golden[f"{negatives}.loss"], rtol=1e-6)
    for name, gradient in zip(("images", "captions"), gradients, strict=True):
        expected = golden[f"{negatives}.grad_{name}"]
        assert golden_weights.relative_error(gradient, expected) < 1e-4


def test_a_case_by_hand():
    # Similarities: pairs 1 and 0.8 on the diagonal, 0.9 and 0.6 elsewhere.
    images = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    captions = jnp.array([[1.0, 0.6], [0.9, 0.8]])
    # Image 0: .2+.9−1; image 1: .2+.6−.8 = 0; caption 0: 0; caption 1: .2+.9−.8.
    for hardest in (True, False):  # equal, as there is one negative each
        assert hinge_loss(images, captions, 0.2, hardest) == pytest.approx(0.4)


def test_the_switch_may_be_traced():
    golden = golden_weights.load("loss", "b6.")
    images, captions = jnp.asarray(golden["images"]), jnp.asarray(golden["captions"])
    loss = jax.jit(lambda hardest: hinge_loss(images, captions, 0.2, hardest))
    np.testing.assert_allclose(loss(True), golden["max.loss"], rtol=1e-6)
    np.testing.assert_allclose(loss(False), golden["sum.loss"], rtol=1e-6)


def test_equal_negatives_share_the_gradient_and_keep_it_finite():
    images = jnp.ones((4, 3))
    gradient = jax.grad(hinge_loss)(images, jnp.ones((4, 3)), 0.2, True)
    assert np.isfinite(gradient).all()
