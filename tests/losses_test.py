"""The losses: the official one, each formula in NumPy; on any mesh, in blocks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights, tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import batch_of, bigru, set_up
from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten
from vse_jax.distributed.mesh import batch_sharding, make_mesh, put_batch
from vse_jax.losses import TripletLoss, batch_loss
from vse_jax.models.build import build_loss


def hinge_loss(images, captions, margin, hardest, mesh=None, **block):
    """The triplet loss in an epoch of all, or of the hardest, negatives."""
    loss = TripletLoss(margin, warmup_epochs=1)
    epoch = jnp.asarray(hardest).astype(jnp.int32)
    return batch_loss(loss, images, captions, epoch, None, mesh, **block)


# One program for a size.
jitted_loss = jax.jit(hinge_loss, static_argnums=2)


@pytest.mark.parametrize("case", ["b6", "b33"])
@pytest.mark.parametrize("negatives", ["sum", "max"])
def test_loss_and_gradients_equal_the_official_ones(case, negatives):
    golden = golden_weights.load("loss", f"{case}.")
    images, captions = jnp.asarray(golden["images"]), jnp.asarray(golden["captions"])
    loss, gradients = jax.value_and_grad(jitted_loss, argnums=(0, 1))(
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
        assert jitted_loss(images, captions, 0.2, hardest) == pytest.approx(0.4)


def test_equal_negatives_share_the_gradient_and_keep_it_finite():
    images = jnp.ones((4, 3))
    gradient = jax.grad(jitted_loss)(images, jnp.ones((4, 3)), 0.2, True)
    assert np.isfinite(gradient).all()


def loss_on(mesh, hardest, block=2**24):
    """hinge_loss and its gradients over the mesh, jitted."""
    rows = None if mesh is None else (batch_sharding(mesh),) * 2

    def loss(images, captions):
        return hinge_loss(images, captions, 0.2, hardest, mesh, block=block)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), in_shardings=rows)


@pytest.fixture(scope="module")
def mesh():
    config = draft()
    config.mesh.fsdp = 2
    return make_mesh(config)


@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("spread", [True, False])
def test_blocks_and_devices_do_not_change_loss_or_gradients(mesh, spread, hardest):
    rng = np.random.default_rng(0)
    images, captions = rng.normal(size=(2, 48, 8)).astype(np.float32)
    captions[7] = captions[40]  # equally hard negatives on two devices
    loss, gradients = loss_on(None, hardest)(images, captions)
    # Blocks of two rows, the last one of a device included.
    on = loss_on(mesh if spread else None, hardest, block=2 * 48)
    blockwise, blockwise_gradients = on(images, captions)
    np.testing.assert_allclose(blockwise, loss, rtol=1e-6)
    for ours, expected in zip(blockwise_gradients, gradients, strict=True):
        assert golden_weights.relative_error(ours, expected) < 1e-6


@pytest.mark.parametrize("hardest", [True, False])
def test_a_prime_number_of_pairs_a_device_has_whole_blocks(mesh, hardest):
    """13 pairs on each of eight devices, five rows at a time: 5, 5 and the last 3."""
    rng = np.random.default_rng(1)
    images, captions = rng.normal(size=(2, 8 * 13, 8)).astype(np.float32)
    on = loss_on(mesh, hardest, block=5 * len(images))
    loss, gradients = on(images, captions)

    def directly(images, captions):
        similarity = images @ captions.T
        pairs = jnp.diag(similarity)
        others = 1 - jnp.eye(len(images))
        best = jnp.max if hardest else jnp.sum
        costs = [
            best(others * jax.nn.relu(0.2 + similarity - right), axis=axis)
            for axis, right in ((1, pairs[:, None]), (0, pairs))
        ]
        return jnp.sum(jnp.stack(costs))

    expected = jax.value_and_grad(directly, argnums=(0, 1))(images, captions)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    for ours, wanted in zip(gradients, expected[1], strict=True):
        assert golden_weights.relative_error(ours, wanted) < 1e-6

    # Both directions, forward and backward; a block has 5 of the 104 rows.
    program = str(jax.make_jaxpr(on)(images, captions))
    assert re.findall(r"\blength=(\d+)", program) == ["3"] * 4
    assert "f32[5,104]" in program


def test_no_device_holds_a_similarity_matrix_of_65536_pairs(mesh):
    """Compiled, not run; only the gathered embeddings are as long as the batch."""
    pairs, dim = 65536, 64
    embeddings = jax.ShapeDtypeStruct((pairs, dim), np.float32)
    compiled = loss_on(mesh, hardest=True).lower(embeddings, embeddings).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 4 * pairs**2 / 8 / 4  # a quarter of one device's share
    assert f"{pairs},{pairs}" not in compiled.as_text()
    assert f"{pairs // 8},{pairs}" not in compiled.as_text()


# ---- Every loss that a config may name -----------------------------------------------

PAIRS, DIM = 48, 8
LOSSES = ("triplet", "infonce", "sigmoid")


def made(name):
    config = draft()
    config.loss.name = name
    loss = build_loss(config, rngs=nnx.Rngs(0))
    # Away from the start values, so that every parameter matters.
    graphdef, state = nnx.split(loss)
    return nnx.merge(graphdef, jax.tree.map(lambda x: 0.9 * x, state))


def embeddings():
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, PAIRS, DIM)).astype(np.float32)
    return both / np.linalg.norm(both, axis=-1, keepdims=True)


def formula(name, loss, images, captions, negatives):
    """In float64, as the papers write it."""
    similarity = images.astype(float) @ captions.T.astype(float)
    own = np.diag(similarity)
    if name == "triplet":
        costs = np.maximum(0, loss.margin + similarity - own[:, None]) * negatives
        back = np.maximum(0, loss.margin + similarity - own[None]) * negatives
        return costs.max(axis=1).sum() + back.max(axis=0).sum()
    scale = np.exp(float(loss.log_scale[...]))
    if name == "infonce":
        e = np.exp(scale * similarity) * (negatives | np.eye(PAIRS, dtype=bool))
        ways = [-np.log(np.diag(e) / e.sum(axis=axis)).mean() for axis in (0, 1)]
        return sum(ways) / 2
    sign = 2 * np.eye(PAIRS) - 1
    logits = scale * similarity + float(loss.bias[...])
    counted = negatives | np.eye(PAIRS, dtype=bool)
    return (np.log1p(np.exp(-sign * logits)) * counted).sum() / PAIRS


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_its_formula_on_any_mesh_and_in_blocks(name, masked):
    images, captions = embeddings()
    ids = np.arange(PAIRS, dtype=np.int32) // (3 if masked else 1)
    loss = made(name)
    expected = formula(name, loss, images, captions, ids[:, None] != ids)
    graphdef, state = nnx.split(loss)
    config = draft()
    config.mesh.fsdp = 2

    results = []
    for mesh in (None, make_mesh(config)):
        for block in (2**24, 5 * PAIRS):

            def value(state, images, captions, mesh=mesh, block=block):
                loss = nnx.merge(graphdef, state)
                rows = jnp.asarray(ids) if masked else None
                return batch_loss(loss, images, captions, 9, rows, mesh, block=block)

            results.append(
                jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(
                    state, images, captions
                )
            )
    for found, gradients in results:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for ours, wanted in zip(
            jax.tree.leaves(gradients), jax.tree.leaves(results[0][1]), strict=True
        ):
            assert golden_weights.relative_error(ours, wanted) < 1e-5


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_its_parameters_are_trained_alike_on_any_mesh_and_with_microbatches(name):
    config = tiny.quick(bigru(draft(tiny.get_config())))
    config.loss.name = name
    config.image.backbone.batch_norm = "frozen"
    results = []
    for devices, fsdp, microbatches in ((1, 1, 1), (8, 1, 2), (8, 8, 2)):
        config.microbatches = microbatches
        config.mesh.fsdp = fsdp
        mesh, optimizer, state, step = set_up(config, devices)
        before = {
            path: np.array(x)
            for path, x in flatten(state.params).items()
            if path.startswith("loss/")
        }
        batch = put_batch(batch_of(config), batch_sharding(mesh))
        state, scalars = step(state, batch, optimizer.trainable_groups(0))
        after = jax.device_get(flatten(state.params))
        assert all(before[path] != after[path] for path in before)
        results.append([scalars["loss"], *(after[path] for path in before)])
    for found in results[1:]:
        np.testing.assert_allclose(found, results[0], rtol=1e-4)
    assert len(results[0]) == {"infonce": 2, "sigmoid": 3}[name]


def test_no_loss_of_this_name():
    config = draft()
    config.loss.name = "hinge"
    with pytest.raises(InputError, match=r"loss\.name: 'hinge' is none of triplet, in"):
        build_loss(config, rngs=nnx.Rngs(0))


def test_a_class_of_ones_own_gets_what_it_asks_for_and_must_fit(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(
        "from flax import nnx\n"
        "class Wide(nnx.Module):\n"
        "    def __init__(self, margin):\n"
        "        self.margin = margin\n"
        "    def __call__(self, similarity, positives, negatives, epoch):\n"
        "        return positives\n"
        "class Narrow(nnx.Module):\n"
        "    def __call__(self, similarity, positives):\n"
        "        return positives\n"
        "class Plain:\n"
        "    __call__ = Wide.__call__\n"
        "class Greedy(nnx.Module):\n"
        "    def __init__(self, width): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = draft()
    for name, message in (
        ("Narrow", "is no loss: __call__ takes no negatives and no epoch"),
        ("Plain", r"is no loss: no flax\.nnx\S+\.Module"),
        ("Greedy", "asks for width; there is margin, warmup_epochs, rngs"),
        ("Absent", "the module own_losses has no Absent"),
    ):
        config.loss.name = f"own_losses:{name}"
        with pytest.raises(InputError, match=rf"config\.loss\.name: .*{message}"):
            build_loss(config, rngs=nnx.Rngs(0))
    config.loss.name = "own_losses:Wide"
    assert build_loss(config, rngs=nnx.Rngs(0)).margin == config.loss.margin
