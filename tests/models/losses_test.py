"""Every loss against its formula in NumPy, on any mesh, in blocks, in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from tests.helpers import golden_weights, tiny
from tests.helpers.steps import batch_of, set_up
from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten
from vse_jax.distributed.mesh import batch_sharding, make_mesh, put_batch
from vse_jax.losses import batch_loss
from vse_jax.models.build import build_loss

PAIRS, DIM = 48, 8
LOSSES = ("triplet", "infonce", "sigmoid")


def made(name):
    config = common.base()
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
    config = common.base()
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
@pytest.mark.parametrize("fsdp", [1, 8])
def test_its_parameters_are_trained_alike_on_any_mesh_and_with_microbatches(name, fsdp):
    config = tiny.get_config()
    config.loss.name = name
    config.text.dropout = config.image.drop = 0.0
    config.image.backbone.batch_norm = "frozen"
    results = []
    for devices, microbatches in ((1, 1), (8, 2)):
        config.microbatches = microbatches
        config.mesh.fsdp = fsdp if devices > 1 else 1
        mesh, optimizer, state, step = set_up(config, devices)
        before = {
            path: np.array(x)
            for path, x in flatten(state.params).items()
            if path.startswith("loss/")
        }
        batch = put_batch(batch_of(config), batch_sharding(mesh))
        state, scalars = step(state, batch, optimizer.open_groups(0))
        after = jax.device_get(flatten(state.params))
        assert all(before[path] != after[path] for path in before)
        results.append([scalars["loss"], *(after[path] for path in before)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)
    assert len(results[0]) == {"infonce": 2, "sigmoid": 3}[name]


def test_no_loss_of_this_name():
    config = common.base()
    config.loss.name = "hinge"
    with pytest.raises(InputError, match=r"loss\.name: 'hinge' is none of triplet, in"):
        build_loss(config, rngs=nnx.Rngs(0))


def test_a_class_of_ones_own_gets_what_it_asks_for_and_must_fit(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(
        "from flax import nnx\n"
        "class Wide(nnx.Module):\n"
        "    def __init__(self, margin):\n"
        "        self.margin = margin\n"
        "    def __call__(self, similarity, pairs, negatives, epoch):\n"
        "        return pairs\n"
        "class Narrow(nnx.Module):\n"
        "    def __call__(self, similarity, pairs):\n"
        "        return pairs\n"
        "class Plain:\n"
        "    __call__ = Wide.__call__\n"
        "class Greedy(nnx.Module):\n"
        "    def __init__(self, width): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = common.base()
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
