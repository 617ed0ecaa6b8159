"""The training step: equal on every mesh, exact about what is frozen."""

import functools
import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.steps import batch_of, bigru, region_config, set_up, trainer_of
from vse_jax.base.trees import flatten
from vse_jax.data.collate import (
    caption_shapes,
    image_shapes,
    packed_indices,
    size_of,
)
from vse_jax.distributed.mesh import batch_sharding, put_batch
from vse_jax.models.build import merge_model
from vse_jax.planning.program import Program, read_program
from vse_jax.train_step import train_step


@pytest.mark.parametrize("kind", ["grid_bert", "packed", "region_bigru"])
def test_loss_and_gradients_are_those_of_one_device_on_any_mesh(kind, monkeypatch):
    monkeypatch.setattr(
        "vse_jax.distributed.mesh._SHARD_FROM", 256
    )  # shard toy kernels too
    if kind == "region_bigru":
        config = bigru(region_config())  # both of its towers have GPO
    else:
        config = draft(tiny.get_config())
        config.image.pool = config.text.pool = "avg"
    # One step of plain descent with rate 1: the change of a parameter is its gradient.
    config.optimizer.update({"name": "sgd", "learning_rate": 1.0, "clip": 1e9})
    config.optimizer.weight_decay = 0.0
    results = []
    unpacked = batch_of(config)
    meshes = [(1, 1, 1), (1, 8, 1), (1, 8, 2), (1, 8, 8), (2, 8, 2)]
    packed = unpacked
    if kind == "packed":  # on one device they are not; dropout would draw for others
        meshes, config.text.dropout = [(1, 1, 1), (1, 8, 2)], 0.0
        lengths = unpacked["token_lengths"]
        packed = unpacked | {"packed_indices": packed_indices(lengths, 16, 8, 8)}
    for slices, devices, fsdp in meshes:
        config.mesh.update({"slice": slices, "fsdp": fsdp})
        mesh, optimizer, state, step = set_up(config, devices)
        # Copies: views of the buffers would keep them from being donated.
        before = {path: np.array(x) for path, x in flatten(state.params).items()}
        batch = put_batch(packed if devices > 1 else unpacked, batch_sharding(mesh))
        kernel = state.params["image"]["fc"]["kernel"]
        compiled = step.lower(state, batch, optimizer.trainable_groups(0)).compile()
        with jax.transfer_guard("disallow"):  # nothing goes through the host
            state, metrics = compiled(state, batch)
        assert kernel.is_deleted()  # donated
        after = jax.device_get(flatten(state.params))
        gradients = {path: before[path] - after[path] for path in after}
        results.append((jax.device_get(metrics), gradients, state.batch_stats))
        program = compiled.as_text()
        assert not re.findall(r"\b(infeed|outfeed|send|recv)\(", program)
        for array in jax.tree.leaves((state.params, state.opt_state)):
            if array.size >= 256:
                shard = array.addressable_shards[0].data  # each slice holds them all
                assert shard.size == array.size / (devices / slices)
        if devices > 1 and fsdp == 1:
            # All that any device asks the others for are the embeddings of an encoder,
            # and the parameters, of which each device holds a shard.
            embeddings = config.batch_size * config.embed_dim
            sizes = {x.size for x in after.values()} | {embeddings}
            assert embeddings in gathered_elements(program)
            assert set(gathered_elements(program)) <= sizes
    one = results[0]
    for metrics, gradients, stats in results[1:]:
        np.testing.assert_allclose(metrics["loss"], one[0]["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], one[0]["grad_norm"], rtol=1e-4)
        scale = max(np.abs(g).max() for g in one[1].values())
        for path, gradient in gradients.items():
            np.testing.assert_allclose(
                gradient, one[1][path], rtol=1e-4, atol=1e-5 * scale, err_msg=path
            )
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            jax.device_get(stats),
            jax.device_get(one[2]),
        )


def gathered_elements(program: str) -> list[int]:
    """The size of every all-gather's result in a compiled program."""
    found = re.findall(r"= \(?\w+\[([\d,]*)\].*? all-gather(?:-start)?\(", program)
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in found]


@pytest.mark.parametrize(
    "name", ["coco_region", pytest.param("coco_grid", marks=pytest.mark.slow)]
)
def test_fsdp_sends_parameters_around_and_no_activations(name):
    """The published sizes, one layer deep, on eight devices."""
    config = draft(importlib.import_module(f"configs.{name}").get_config())
    config.text.layers, config.image.backbone.layers = 1, (1,) * 4
    config.batch_size = config.eval.batch_size = 136
    shapes = image_shapes(config.image, 136) | caption_shapes(136, 16)
    rows = r"\b(136|17)\b"  # of all and of one device: sizes that no parameter has

    def program(fsdp) -> tuple[Program, dict[str, int]]:
        config.mesh.fsdp = fsdp
        trainer = trainer_of(config, devices=8)
        groups = trainer.optimizer.trainable_groups(config.num_epochs)
        lowered = trainer.lower_step(shapes, groups)
        params = flatten(trainer.abstract.params)
        sizes = {path: 4 * leaf.size for path, leaf in params.items()}
        return read_program(lowered.compile()), sizes

    (whole, _), (cut, sizes) = program(fsdp=1), program(fsdp=8)
    total = sum(sizes.values())
    sent = {(c.kind, c.shape) for c in cut.collectives if re.search(rows, c.shape)}
    assert sent <= {("all-gather", "f32[136,1024]"), ("reduce-scatter", "f32[17,1024]")}
    # The forward and the backward pass gather a parameter once each.
    assert 0.8 * total < cut.sent_bytes["all-gather"] <= 1.2 * 2 * total
    assert cut.temporaries_bytes <= whole.temporaries_bytes + max(sizes.values())
    assert cut.flops == pytest.approx(whole.flops, rel=0.05)
    for each in (whole, cut):  # parameters and two moments
        assert each.arguments_bytes < 1.05 * (3 * total + size_of(shapes)) / 8


def test_frozen_leaves_stay_bit_equal_until_their_group_opens():
    config = tiny.quick(draft(tiny.get_config()))
    config.optimizer.rules = (
        ("^image/backbone/layer2/", 1.0, 1),
        ("^image/backbone/", 1.0, 2),
        (".*", 1.0, 0),
    )
    mesh, optimizer, state, step = set_up(config, steps_per_epoch=2)
    start = jax.device_get(flatten(state.params))
    batch = put_batch(batch_of(config), batch_sharding(mesh))
    counts = []
    for number in range(6):
        state, _ = step(state, batch, optimizer.trainable_groups(number // 2))
        params = jax.device_get(flatten(state.params))
        for path, x in params.items():
            opens = 1 if "layer2" in path else 2 if "backbone" in path else 0
            moved = not np.array_equal(x, start[path])
            # The last linear layer's bias, for one, may move by exactly nothing; a
            # kernel never does.
            if number < 2 * opens:
                assert not moved, (path, number)
            elif path.endswith("kernel"):
                assert moved, (path, number)
        counts.append([int(state.opt_state[g][0].count) for g in "012"])
    assert counts[-1] == [4, 2, 6]


@pytest.mark.parametrize("name", ["coco_grid", "coco_region"])
def test_a_full_size_step_of_the_published_recipes_traces(name):
    config = draft(importlib.import_module(f"configs.{name}").get_config())
    trainer = trainer_of(config, devices=8, steps_per_epoch=4425)
    b = config.batch_size

    def of(shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = {"token_ids": of((b, 32), np.int32), "token_lengths": of((b,), np.int32)}
    if config.image.kind == "grid":
        batch["images"] = of((b, config.image.size, config.image.size, 3))
    else:
        batch["regions"] = of((b, 36, 2048))
        batch["region_lengths"] = of((b,), np.int32)
    groups = trainer.optimizer.trainable_groups(1)
    step = functools.partial(train_step, groups=groups, trainer=trainer)
    new, metrics = jax.eval_shape(step, trainer.abstract, batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, trainer.abstract)
    count = sum(x.size for x in jax.tree.leaves(trainer.abstract.params))
    bert, gpo = 108_891_648, 2 * 2 * 3 * 32 * (32 + 1) + 32
    towers = bert + 768 * 1024 + 1024 + 2048 * 1024 + 1024 + 2 * gpo
    resnet101, mlp = 42_500_160, 2048 * 512 + 512 + 2 * 512 + 512 * 1024 + 1024
    assert count == towers + (resnet101 if name == "coco_grid" else mlp)


def test_matryoshka_is_the_mean_over_prefixes_on_any_mesh():
    """Each prefix is a vector of its own, of length 1, under the same loss."""
    config = bigru(region_config())
    config.loss.update({"matryoshka": (2, 8), "vse_mean_warmup_epochs": 1})
    batch = batch_of(config)
    found = []
    for devices in (1, 8):
        mesh, optimizer, state, step = set_up(config, devices)
        if devices == 1:
            keys = jax.random.split(jax.random.fold_in(state.rng, 0))
            rngs = nnx.Rngs(dropout=keys[0], size=keys[1])
            model = merge_model(trainer_of(config).graphdef, state.weights)
            arrays = jax.tree.map(jnp.asarray, batch)
            sides = [np.array(x) for x in model(arrays, train=True, rngs=rngs)]
        placed = put_batch(batch, batch_sharding(mesh))
        _, metrics = step(state, placed, optimizer.trainable_groups(0))
        found.append(float(metrics["loss"]))
    losses = []
    for dims in (2, 8, config.embed_dim):
        images, captions = (x[:, :dims] for x in sides)
        images = images / np.linalg.norm(images, axis=1, keepdims=True)
        captions = captions / np.linalg.norm(captions, axis=1, keepdims=True)
        similarity = images @ captions.T
        positives = np.diag(similarity)
        each = [
            config.loss.margin + similarity - x for x in (positives[:, None], positives)
        ]
        each = [np.maximum(x, 0) * (1 - np.eye(len(x))) for x in each]
        losses.append(sum(x.sum() for x in each))
    assert found == pytest.approx([np.mean(losses)] * 2, rel=1e-4)
