import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import coco_grid, coco_region
from tests.helpers import official, tiny
from tests.helpers.drafts import draft
from tests.helpers.golden_weights import golden_weight, load
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch.released import Released, from_checkpoint, to_checkpoint
from vse_jax.config import flat_fields
from vse_jax.models.build import abstract_model, merge_model

NAMES = ("region_bert", "grid_bert", "region_bigru")


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """A checkpoint with every released key and what it converts to; read-only."""
    checkpoint = official.checkpoint(request.param, blocks=99)
    return checkpoint, from_checkpoint(checkpoint, "model.pth")


def back(released):
    return to_checkpoint(released)


def assert_same_tensors(found, expected):
    for ours, theirs in zip(found["model"], expected["model"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype, key
            assert torch.equal(ours[key], tensor), key


def test_a_round_trip_gives_every_bit_back(pair):
    checkpoint, released = pair
    again = back(released)
    assert_same_tensors(again, checkpoint)
    for name in ("epoch", "best_rsum", "Eiters"):
        assert again[name] == checkpoint[name]
    # The tensors decide about sizes; the small ones are not the published ones.
    theirs = vars(checkpoint["opt"]) | {"embed_size": 64}
    if released.config.text.kind == "bigru":
        theirs |= {"word_dim": 12, "num_layers": 1}
        theirs |= {"vocab_path": "data/vocab", "vocab_size": 40}
    assert vars(again["opt"]) == theirs


def test_a_converted_model_gives_the_official_embeddings():
    """The golden files' weights, put into a checkpoint of the released layout."""
    sizes = {1024: 32, 2048: 48, 512: 16}, {1024: 32, 30522: 200}
    towers = official.small_layout("region_bert", blocks=2, sizes=sizes)
    checkpoint = official.checkpoint("region_bert") | {
        "model": [
            {
                key: torch.from_numpy(
                    golden_weight(key.replace("module.", prefix), shape)
                )
                for key, shape in tower.items()
                if not key.endswith("num_batches_tracked")
            }
            for prefix, tower in zip(("img_enc.", "txt_enc."), towers, strict=True)
        ]
    }
    released = from_checkpoint(checkpoint, "model.pth")
    graphdef, _ = abstract_model(released.config)
    model = merge_model(graphdef, jax.tree.map(jnp.asarray, released.model))
    region, text = load("image_region"), load("text_bert")
    batch = {
        "regions": region["regions"],
        "region_lengths": region["lengths"],
        "token_ids": text["token_ids"],
        "token_lengths": text["lengths"],
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    images = model.encode_images(batch)
    captions = model.encode_captions(batch)
    np.testing.assert_allclose(images, region["eval.embedding"], atol=1e-5)
    np.testing.assert_allclose(captions, text["embedding"], atol=1e-5)


def test_both_names_of_the_cnn_share_their_memory():
    again = back(from_checkpoint(official.checkpoint("grid_bert"), "model.pth"))
    image = again["model"][0]
    start = "module.backbone"
    for resnet, part in (("conv1", "base.0"), ("layer4.0.conv1", "top.0.0.conv1")):
        one = image[f"{start}.resnet.{resnet}.weight"]
        other = image[f"{start}.{part}.weight"]
        assert one.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("name", NAMES[:2])
def test_keys_without_the_parallel_prefix_are_kept_so(name):
    checkpoint = official.checkpoint(name)
    released = from_checkpoint(checkpoint, "model.pth")
    plain = checkpoint | {
        "model": [
            {key.removeprefix("module."): tensor for key, tensor in tower.items()}
            for tower in checkpoint["model"]
        ]
    }
    converted = from_checkpoint(plain, "model.pth")
    assert converted.info.prefixes == ("", "")
    jax.tree.map(np.testing.assert_array_equal, converted.model, released.model)
    assert_same_tensors(back(converted), plain)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key.removeprefix('module.')}",
        lambda key: f"model.{key.removeprefix('module.')}",
        lambda key: f"net.tower.{key}",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_keys_of_other_wrappers_come_back_as_they_were(name, wrap):
    checkpoint = official.checkpoint(name)
    expected = from_checkpoint(checkpoint, "model.pth")
    towers = [{wrap(k): x for k, x in t.items()} for t in checkpoint["model"]]
    wrapped = checkpoint | {"model": towers}
    found = from_checkpoint(wrapped, "model.pth")
    jax.tree.map(np.testing.assert_array_equal, found.model, expected.model)
    assert_same_tensors(back(found), wrapped)


@pytest.mark.parametrize("name", NAMES[:2])
def test_layers_are_counted(name):
    config = from_checkpoint(official.checkpoint(name, blocks=2), "model.pth").config
    assert config.text.layers == 2
    if name == "grid_bert":
        assert config.image.backbone.layers == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("region_bert", coco_region),
        pytest.param("grid_bert", coco_grid, marks=pytest.mark.slow),
    ],
)
def test_the_published_layouts_give_the_published_recipes(name, recipe):
    checkpoint = official.checkpoint(name, data_name="coco_precomp")
    shapes = [
        {key: shape for key, (shape, _) in tower.items()}
        for tower in official.layout(name)
    ]
    checkpoint["model"] = [official.state_dict(tower) for tower in shapes]
    config = from_checkpoint(checkpoint, "model.pth").config
    expected = draft(recipe.get_config())
    expected.text.weights = expected.image.weights = None
    assert flat_fields(config) == flat_fields(expected)


@pytest.mark.parametrize(
    ("name", "options", "fields"),
    [
        (
            "region_bert",
            {
                "learning_rate": 2e-4,
                "lr_update": 9,
                "margin": 0.3,
                "grad_clip": 1,
                "vse_mean_warmup_epochs": 2,
                "num_epochs": 30,
                "batch_size": 64,
                "no_imgnorm": True,
            },
            {
                "optimizer.learning_rate": 2e-4,
                "optimizer.lr_update": 9,
                "loss.margin": 0.3,
                "optimizer.clip": 1.0,
                "loss.vse_mean_warmup_epochs": 2,
                "num_epochs": 30,
                "batch_size": 64,
                "image.normalise": False,
                "text.normalise": True,
                "image.kind": "region",
                "image.feature_dim": 128,
                "loss.ramp_epoch": -1,
                "embed_dim": 64,
                "text.vocab_size": 40,
                "text.hidden": 64,
                "text.heads": 1,
                "text.ffn": 192,
                "data.name": "f30k",
                "data.root": "data/f30k",
                "eval.split": "test",
                "optimizer.rules": (("^text/bert/", 0.1, 0), (".*", 1.0, 0)),
            },
        ),
        (
            "grid_bert",
            {
                "data_name": "coco_precomp",
                "input_scale_factor": 1,
                "embedding_warmup_epochs": 2,
                "backbone_warmup_epochs": 3,
                "backbone_lr_factor": 0.1,
                "backbone_source": "imagenet",
            },
            {
                "image.kind": "grid",
                "image.size": 256,
                "image.pixels": "imagenet",
                "image.backbone.block": "v1",
                "image.backbone.layers": (1, 1, 1, 1),
                "image.backbone.width": 4,
                "image.backbone.groups": 1,
                "image.backbone.group_width": 64,
                "loss.ramp_epoch": 2,
                "hub.license": None,
                "eval.split": "testall",
                "optimizer.rules": (
                    ("^image/backbone/layer4/", 0.1, 2),
                    ("^image/backbone/layer3/", 0.1, 5),
                    ("^image/backbone/layer2/", 0.1, 8),
                    ("^image/backbone/", 0.1, 11),
                    ("^text/bert/", 0.1, 0),
                    (".*", 1.0, 0),
                ),
            },
        ),
        ("grid_bert", {"backbone_source": "wsl"}, {"hub.license": "cc-by-nc-4.0"}),
        (
            "grid_bert",
            {"optim": "sgd"},
            {
                "optimizer.name": "sgd",
                "optimizer.nesterov": True,
                "optimizer.weight_decay_on": "^image/backbone/",
            },
        ),
        (
            "region_bert",
            {"optim": "sgd"},
            {
                "optimizer.name": "sgd",
                "optimizer.nesterov": False,
                "optimizer.weight_decay": 0.0,
            },
        ),
    ],
)
def test_options_and_sizes_become_the_config(name, options, fields):
    checkpoint = official.checkpoint(name, **options)
    released = from_checkpoint(checkpoint, "model.pth")
    found = flat_fields(released.config)
    assert {field: found[field] for field in fields} == fields
    expected = vars(checkpoint["opt"]) | {"embed_size": 64}
    assert vars(back(released)["opt"]) == expected


def small(recipe, **backbone):
    config = draft(recipe.get_config())
    config.embed_dim = 16
    config.image.feature_dim = 24
    config.text.weights = config.image.weights = None
    config.text.update(
        vocab_size=20, hidden=64, layers=1, heads=1, ffn=16, max_positions=32
    )
    if config.image.kind == "grid":
        config.image.feature_dim = 2048  # not used
        config.image.backbone.update(width=8, layers=(1, 1, 2, 1), **backbone)
        config.image.pixels = "imagenet" if backbone else "detector"
    return config


CONFIGS = {
    "region": (small(coco_region), "detector"),
    "detector": (small(coco_grid), "detector"),
    "imagenet": (small(coco_grid, block="v1"), "imagenet"),
    "resnext": (
        small(coco_grid, block="torchvision", groups=4, group_width=16),
        "imagenet_resnext",
    ),
}


def weights(config):
    _, abstract = abstract_model(config)
    return jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), abstract)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_was_trained_here_goes_to_the_official_program(name):
    config, source = CONFIGS[name]
    checkpoint = to_checkpoint(Released(config, weights(config), 3, 400.0, None), 99)
    assert (checkpoint["epoch"], checkpoint["Eiters"]) == (3, 99)
    assert checkpoint["opt"].backbone_source == source
    assert checkpoint["opt"].precomp_enc_type == (
        "basic" if name == "region" else "backbone"
    )
    config_back = from_checkpoint(checkpoint, "model.pth").config
    assert flat_fields(config_back) == flat_fields(config)


@pytest.mark.parametrize("name", NAMES)
def test_such_a_model_has_exactly_the_released_keys(name):
    released = from_checkpoint(official.checkpoint(name), "model.pth")
    fresh = to_checkpoint(dataclasses.replace(released, info=None))
    for found, shapes in zip(fresh["model"], official.small_layout(name), strict=True):
        assert {key: tuple(tensor.shape) for key, tensor in found.items()} == shapes


def test_a_model_that_the_official_program_lacks_names_the_field():
    config = draft(tiny.get_config())
    with pytest.raises(InputError, match=r"image\.backbone\.stem: .* no 'patch'"):
        to_checkpoint(Released(config, weights(config), 0, 0.0, None))


def test_without_options_the_published_ones_are_taken():
    checkpoint = official.checkpoint("grid_bert")
    del checkpoint["opt"]
    config = from_checkpoint(checkpoint, "model.pth").config
    assert config.image.size == 512
    assert config.optimizer.rules == draft(coco_grid.get_config()).optimizer.rules


@pytest.mark.parametrize("missing", ["resnet", "base"])
def test_one_copy_of_the_cnn_is_enough(missing):
    checkpoint = official.checkpoint("grid_bert")
    expected = from_checkpoint(checkpoint, "model.pth")
    unwanted = r"resnet" if missing == "resnet" else ("base", "top")
    image = {
        key: tensor
        for key, tensor in checkpoint["model"][0].items()
        if not key.removeprefix("module.backbone.").startswith(unwanted)
    }
    single = checkpoint | {"model": [image, checkpoint["model"][1]]}
    found = from_checkpoint(single, "model.pth")
    jax.tree.map(np.testing.assert_array_equal, found.model, expected.model)


def test_copies_of_the_cnn_that_differ_are_named():
    checkpoint = official.checkpoint("grid_bert")
    image = checkpoint["model"][0]
    for part in ("base.0.weight", "top.0.0.bn1.running_mean"):
        image[f"module.backbone.{part}"] = image[f"module.backbone.{part}"] + 1
    with pytest.raises(InputError) as error:
        from_checkpoint(checkpoint, "model.pth")
    assert str(error.value) == (
        "model.pth: the two copies of the CNN differ: "
        "img_enc.backbone.resnet.conv1.weight and img_enc.backbone.base.0.weight, "
        "img_enc.backbone.resnet.layer4.0.bn1.running_mean and "
        "img_enc.backbone.top.0.0.bn1.running_mean"
    )


def test_missing_extra_and_misshapen_tensors_are_reported_together():
    checkpoint = official.checkpoint("region_bert")
    image, text = checkpoint["model"]
    del image["module.mlp.layers.0.bias"]
    del text["module.bert.embeddings.word_embeddings.weight"]
    image["module.fc.bias"] = torch.zeros(5)
    text["module.gpool.extra"] = torch.zeros(5)
    with pytest.raises(InputError) as error:
        from_checkpoint(checkpoint, "model.pth")
    for part in (
        "img_enc.mlp.layers.0.bias is missing",
        "txt_enc.bert.embeddings.word_embeddings.weight is missing",
        "img_enc.fc.bias has shape [5], expected [64]",
        "txt_enc.gpool.extra is unexpected",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_another_architecture_names_what_differs():
    checkpoint = official.checkpoint("region_bert")
    image, text = checkpoint["model"]  # VSE++: one linear layer and average pooling
    image = {key: tensor for key, tensor in image.items() if ".fc." in key}
    with pytest.raises(InputError, match=r"img_enc\.gpool\.linear\.weight is missing"):
        from_checkpoint(checkpoint | {"model": [image, text]}, "model.pth")
    with pytest.raises(InputError, match=r"txt_enc is neither of bert, bigru: it h"):
        from_checkpoint(checkpoint | {"model": [image, image]}, "model.pth")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"fc.weight": torch.zeros(1)},
        {"model": {"fc.weight": torch.zeros(1)}},
        {"model": [{}, {}]},
    ],
)
def test_a_file_of_another_program_is_refused(content):
    with pytest.raises(InputError, match=r"^model\.pth: no checkpoint of the official"):
        from_checkpoint(content, "model.pth")


def test_options_that_are_no_json_are_numbers_or_texts_or_left_out(caplog):
    checkpoint = official.checkpoint(
        "region_bert",
        margin=np.float64(0.3),
        num_epochs=torch.tensor(7),
        batch_size=np.int64(64),
        no_imgnorm=np.bool_(True),
        save_dir=pathlib.PurePosixPath("runs/a"),
        seeds=(np.int32(1), 2),
        about={"folder": pathlib.PurePosixPath("b"), "n": np.uint8(3)},
        device=torch.device("cuda:0"),
        dtype=torch.float16,
        ids={1, 2},
        means=np.zeros(3),
        weight=torch.ones(2),
        nested={"device": torch.device("cpu")},
        numbers={1: "a"},
    ) | {"Eiters": np.int64(53100), "epoch": torch.tensor(3)}
    with caplog.at_level("INFO", logger="absl"):
        released = from_checkpoint(checkpoint, "model.pth")
    config, options = released.config, released.info.options
    assert (config.loss.margin, config.num_epochs, config.batch_size) == (0.3, 7, 64)
    assert config.image.normalise is False
    assert (released.info.iterations, released.epoch) == (53100, 3)
    assert options["save_dir"] == "runs/a"
    assert options["seeds"] == [1, 2]
    assert options["about"] == {"folder": "b", "n": 3}
    left_out = ("device", "dtype", "ids", "means", "weight", "nested", "numbers")
    for name in left_out:
        assert name not in options
        lines = [m for m in caplog.messages if f"option {name} is left out" in m]
        assert len(lines) == 1
    assert json.loads(json.dumps(options)) == options


@pytest.mark.parametrize("value", [np.zeros(2), torch.device("cpu"), {0.2}])
def test_an_option_that_is_read_is_never_left_out(value):
    checkpoint = official.checkpoint("region_bert", margin=value)
    with pytest.raises(InputError, match=r"^model\.pth: option margin is "):
        from_checkpoint(checkpoint, "model.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"opt": argparse.Namespace(margin="wide")},
            "option margin is 'wide', not flo",
        ),
        (
            {"opt": argparse.Namespace(optim="adagrad")},
            "option optim is 'adagrad', non",
        ),
        (
            {"opt": argparse.Namespace(backbone_source="vgg")},
            "backbone_source is 'vgg'",
        ),
        ({"opt": 5}, "'opt' holds no options"),
        ({"epoch": "late"}, "'epoch' is 'late', not a number"),
    ],
)
def test_bad_options_are_named(change, message):
    checkpoint = official.checkpoint("grid_bert") | change
    with pytest.raises(InputError, match=rf"^model\.pth: .*{message}"):
        from_checkpoint(checkpoint, "model.pth")
