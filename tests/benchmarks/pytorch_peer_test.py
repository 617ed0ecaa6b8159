"""What is measured against is the official model: it gives the golden arrays, too."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import torch

from benchmarks import pytorch_peer
from configs import common
from tests.helpers import golden_weights, steps, tiny
from tests.helpers.drafts import draft
from vse_jax.checkpoints.torch import keys
from vse_jax.distributed.mesh import batch_sharding, put_batch

# Parameters without a true gradient (tests/train/trajectory_test.py): Adam makes
# steps of their rounding noise.
NO_GRADIENT = re.compile(r"attention\.self\.key\.bias|mlp\.layers\.0\.bias")


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait for each other: beside other tests, for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_text(config):
    config.embed_dim = 32
    config.text.update(vocab_size=120, layers=1, ffn=1024, hidden=768, heads=12)
    config.text.dropout = 0.0
    return config


def golden_peer(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """The module with the golden weights of prefix + key."""
    weights = {
        key: torch.from_numpy(golden_weights.golden_weight(prefix + key, tensor.shape))
        for key, tensor in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    module.load_state_dict(weights, strict=False)
    return module


def test_region_tower_gives_the_official_embeddings_and_gradients():
    config = steps.region_config()
    config.embed_dim, config.image.feature_dim = 32, 48
    tower = golden_peer(pytorch_peer.RegionTower(config), "img_enc.")
    golden = golden_weights.load("image_region")
    regions, lengths = map(torch.from_numpy, (golden["regions"], golden["lengths"]))
    with torch.inference_mode():
        embedding = tower.eval()(regions, lengths)
    np.testing.assert_allclose(embedding, golden["eval.embedding"], atol=1e-5)
    embedding = tower.train()(regions, lengths)
    np.testing.assert_allclose(embedding.detach(), golden["train.embedding"], atol=1e-5)
    embedding.backward(torch.from_numpy(golden["train.cotangent"]))
    for name, parameter in tower.named_parameters():
        expected = golden[f"train.grad.{name}"]
        if not NO_GRADIENT.search(name):
            error = golden_weights.relative_error(parameter.grad.numpy(), expected)
            assert error < 1e-4, name


@pytest.mark.parametrize("negatives", ["sum", "max"])
def test_loss_equals_the_official_one(negatives):
    golden = golden_weights.load("loss", "b33.")
    pair = [torch.tensor(golden[n], requires_grad=True) for n in ("images", "captions")]
    margin = float(golden["margin"])
    loss = pytorch_peer.hinge_loss(*pair, margin, negatives == "max")
    np.testing.assert_allclose(loss.item(), golden[f"{negatives}.loss"], rtol=1e-6)
    loss.backward()
    for name, tensor in zip(("images", "captions"), pair, strict=True):
        expected = golden[f"{negatives}.grad_{name}"]
        assert golden_weights.relative_error(tensor.grad.numpy(), expected) < 1e-4


def test_steps_follow_the_official_trajectory():
    golden = golden_weights.load("trajectory_region")
    config = tiny_text(steps.region_config())
    config.image.feature_dim = 48
    config.optimizer.learning_rate = 5e-4
    model = golden_peer(pytorch_peer.VSE(config))
    step = pytorch_peer.TrainStep(model, config)
    scalars = []
    for number in range(len(golden["losses"])):
        names = ("images", "image_lengths"), ("token_ids", "text_lengths")
        images, captions = (
            tuple(torch.from_numpy(golden[f"batch{number}.{n}"]) for n in pair)
            for pair in names
        )
        if number == 8:  # two epochs of four steps: the rate drops
            for group in step.optimizer.param_groups:
                group["lr"] *= 0.1
        scalars.append(step(images, captions, hardest=number >= 4))
    losses, norms = np.array(scalars).T
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)
    np.testing.assert_allclose(norms, golden["grad_norms_before_clip"], rtol=1e-3)


def test_a_grid_step_is_ours():
    """The same weights and batch: loss, norm and all parameters afterwards."""
    config = tiny_text(draft(tiny.get_config()))
    config.batch_size = 4
    config.image.size, config.image.drop = 64, 0.0
    config.image.backbone.update(
        block="v1", stem="conv7", layers=(1, 1, 1, 1), width=16, batch_norm="frozen"
    )
    config.optimizer.learning_rate = 5e-4
    config.optimizer.rules = common.grid_rules(embedding_warmup=0)
    mesh, optimizer, state, ours = steps.set_up(config)
    table = keys.GRID_ENCODER.with_prefix("img_enc.", "image/")
    table += keys.BERT_ENCODER.with_prefix("txt_enc.", "text/")

    def official(state):
        tensors = keys.to_torch(state.params, table)
        tensors |= keys.to_torch(state.batch_stats, table)
        return {key: torch.from_numpy(np.array(x)) for key, x in tensors.items()}

    model = pytorch_peer.VSE(config)
    model.load_state_dict(official(state), strict=False)
    batch = steps.batch_of(config)
    ids, lengths = map(torch.from_numpy, (batch["token_ids"], batch["token_lengths"]))
    images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2)
    # Two epochs on, only the hardest negatives count, as in the peer by itself.
    state = dataclasses.replace(state, step=state.step + 8)
    state, scalars = ours(
        state, put_batch(batch, batch_sharding(mesh)), optimizer.trainable_groups(2)
    )
    loss, norm = pytorch_peer.TrainStep(model, config)((images,), (ids, lengths))
    np.testing.assert_allclose(loss, scalars["loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, scalars["grad_norm"], rtol=1e-4)
    theirs = model.state_dict()
    for key, tensor in official(jax.device_get(state)).items():
        if not NO_GRADIENT.search(key):
            np.testing.assert_allclose(theirs[key], tensor, atol=2e-5, err_msg=key)
