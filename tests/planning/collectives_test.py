"""What the compiled programs of a run send between devices."""

import importlib
import re

import jax
import pytest

from tests.helpers.steps import trainer_of
from vse_jax.config import typed, with_fields
from vse_jax.data.collate import (
    caption_shapes,
    image_shapes,
    packing_devices,
    pair_shapes,
)
from vse_jax.evaluation.encode import jit_encoders, lower_encoder
from vse_jax.models.build import abstract_model
from vse_jax.planning.program import read_program

# 17 captions for each of eight devices, and a row of packed tokens: sizes that no
# parameter has, but the row's 128.
BATCH, TOKENS = 136, 12
OF_ROWS = re.compile(r"\b(136|17)\b|^(8|1),128\b")


def recipe(name):
    name, *variant = name.split(":")
    return typed(importlib.import_module(f"configs.{name}").get_config(*variant))


def programs(config, devices, batch):
    """(name, program) of a training step and of both encoders of evaluation."""
    trainer = trainer_of(config, devices)
    mesh = trainer.mesh
    groups = trainer.optimizer.trainable_groups(config.num_epochs - 1)
    captions = caption_shapes(batch, TOKENS)
    packed = devices if packing_devices(config, devices) else None
    pairs = pair_shapes(config.image, batch)
    pairs |= caption_shapes(batch, TOKENS, packed=packed)
    yield "step", trainer.lower_step(pairs, groups).compile()
    model = trainer.abstract_model
    towers = jit_encoders(trainer.graphdef, model, mesh)
    images = image_shapes(config.image, batch)
    for name, shapes in (("encode_images", images), ("encode_captions", captions)):
        yield name, lower_encoder(towers[name], mesh, model, shapes).compile()


def check(config):
    """What eight devices send for a config, and what each of them computes."""
    alone = with_fields(config, {"mesh.data": 1, "mesh.fsdp": 1})
    _, step = next(programs(alone, 1, BATCH // 8))
    flops = read_program(step).flops
    parameters = len(jax.tree.leaves(abstract_model(config)[1]["params"]))
    wrong = []
    for name, compiled in programs(config, 8, BATCH):
        program = read_program(compiled)
        for c in program.collectives:
            # The loss's own are the embeddings, the image ids and their gradients;
            # evaluation's, what every process gets.
            dims = [int(n) for n in re.findall(r"\d+", c.shape.partition("[")[2])]
            rows = OF_ROWS.search(c.shape.partition("[")[2])
            if c.looped or (rows and not {*dims} <= {8, 17, 136, config.embed_dim}):
                wrong.append(f"{name}: {c}")
        if name == "step" and program.flops > 1.1 * flops:
            wrong.append(f"{name}: {program.flops / flops:.2f} × the FLOP of a share")
        # A parameter is gathered, and once more for its gradient with fsdp; the
        # gradient is summed.
        count = sum(c.times for c in program.collectives)
        if count > 3 * parameters:
            wrong.append(f"{name}: {count} collectives of {parameters} parameters")
    assert not wrong, "\n".join(wrong)


DEPTH = {"batch_size": BATCH, "text.vocab_size": 500, "text.max_positions": 32}
# A grouped CNN and BERT in shards; a loop over the words.
NARROW = {
    "f30k_grid_wsl": {
        "text.hidden": 64,
        "text.ffn": 128,
        "text.heads": 2,
        "image.size": 64,
        "image.backbone.layers": (1, 1),
        "image.backbone.width": 16,
        "image.backbone.group_width": 16,
        "mesh.fsdp": 4,
    },
    "coco_region_bigru": {"image.feature_dim": 64, "text.word_dim": 20},
}


@pytest.mark.parametrize("name", NARROW)
def test_no_rows_of_the_batch_and_nothing_in_a_loop(name):
    check(
        with_fields(
            recipe(name),
            DEPTH | NARROW[name] | {"embed_dim": 48, "text.layers": 1},
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4, 8])
@pytest.mark.parametrize(
    "name",
    [
        "coco_grid",
        "coco_grid:fast",
        "f30k_grid_wsl",
        "coco_region",
        "coco_region_bigru",
        "coco_vsepp",
        "coco_siglip2",
    ],
)
def test_the_same_at_full_width(name, fsdp):
    config = recipe(name)
    layers = {"text.layers": min(config.text.layers, 1), "image.vit.layers": 1}
    blocks = {"image.backbone.layers": (1, 1, 1, 1), "image.size": 128}
    check(with_fields(config, DEPTH | layers | blocks | {"mesh.fsdp": fsdp}))
