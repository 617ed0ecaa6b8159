import jax
import numpy as np
import pytest
from flax import nnx

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.modules import backbone, tree_of
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch import keys
from vse_jax.models.build import build_image_encoder, build_model
from vse_jax.models.gpo import GPO


def region_tower():
    config = draft(tiny.get_config())
    config.image.kind, config.image.feature_dim = "region", 12
    return build_image_encoder(config, rngs=nnx.Rngs(0))


def tiny_model():
    return build_model(draft(tiny.get_config()), rngs=nnx.Rngs(0))


def bigru_tower():
    config = draft(tiny.get_config())
    config.text.update(kind="bigru", layers=2, word_dim=6)
    return build_model(config, rngs=nnx.Rngs(0)).text


PARTS = {
    "gpo": (keys.GPO, lambda: GPO(rngs=nnx.Rngs(0))),
    "region": (keys.REGION_ENCODER, region_tower),
    "grid": (
        keys.GRID_ENCODER,
        lambda: tiny_model().image,
    ),
    "text": (
        keys.BERT_ENCODER,
        lambda: tiny_model().text,
    ),
    "words": (keys.BIGRU_ENCODER, bigru_tower),
    "backbone": (keys.BACKBONE_OFFICIAL, backbone),
    "torchvision": (keys.BACKBONE_TORCHVISION, lambda: backbone("basic")),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_parameter_goes_to_pytorch_and_back(part):
    table, build = PARTS[part]
    tree = tree_of(build())
    tensors = keys.to_torch(tree, table)
    assert len(tensors) == len(jax.tree.leaves(tree))
    back = keys.from_torch(tensors, table, tree, "here")
    assert keys.to_torch(back, table).keys() == tensors.keys()
    for key, tensor in keys.to_torch(back, table).items():
        np.testing.assert_array_equal(tensor, tensors[key])


def test_names_and_layouts_are_those_of_pytorch():
    tensors = keys.to_torch(tree_of(backbone()), keys.BACKBONE_OFFICIAL)
    assert tensors["base.0.weight"].shape == (4, 3, 7, 7)
    assert tensors["base.5.1.conv3.weight"].shape == (32, 8, 1, 1)
    assert tensors["top.0.0.downsample.1.running_var"].shape == (128,)
    tensors = keys.to_torch(tree_of(region_tower()), keys.REGION_ENCODER)
    assert tensors["mlp.layers.0.weight"].shape == (16, 12)
    assert tensors["gpool.gru.weight_ih_l0_reverse"].shape == (96, 32)
    tensors = keys.to_torch(tree_of(bigru_tower()), keys.BIGRU_ENCODER)
    assert tensors["embed.weight"].shape == (32, 6)
    assert tensors["rnn.weight_ih_l0_reverse"].shape == (96, 6)
    assert tensors["rnn.weight_ih_l1"].shape == (96, 64)  # both directions of layer 0


def test_known_useless_tensors_are_dropped():
    tree = tree_of(region_tower())
    tensors = keys.to_torch(tree, keys.REGION_ENCODER)
    tensors["mlp.bns.1.running_mean"] = np.zeros(32)
    tensors["mlp.bns.0.num_batches_tracked"] = np.array(7)
    keys.from_torch(tensors, keys.REGION_ENCODER, tree, "here")


def test_all_problems_are_reported_together():
    tree = tree_of(region_tower())
    tensors = keys.to_torch(tree, keys.REGION_ENCODER)
    del tensors["fc.bias"]
    tensors["mlp.layers.1.weight"] = tensors["mlp.layers.1.weight"].T
    tensors["mlp.bns.2.weight"] = np.zeros(3)
    with pytest.raises(InputError) as error:
        keys.from_torch(tensors, keys.REGION_ENCODER, tree, "model.pth")
    assert str(error.value) == (
        "model.pth: fc.bias is missing; "
        "mlp.layers.1.weight has shape [16, 32], expected [32, 16]; "
        "mlp.bns.2.weight is unexpected"
    )


def test_half_precision_tensors_take_the_template_type():
    tree = tree_of(region_tower())
    tensors = keys.to_torch(tree, keys.REGION_ENCODER)
    half = {key: tensor.astype(np.float16) for key, tensor in tensors.items()}
    filled = keys.from_torch(half, keys.REGION_ENCODER, tree, "here")
    assert filled["fc"]["kernel"].dtype == np.float32


WRAPPED = {
    "DataParallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "inside": lambda key: key.replace(".layers.", "._orig_mod.layers.module."),
    "FSDP": lambda key: key.replace("mlp.", "mlp._fsdp_wrapped_module."),
    "a part": lambda key: f"model.{key}",
    "a part of a wrapped one": lambda key: f"module.model.backbone.{key}",
    "any name": lambda key: f"my_net.tower_1._orig_mod.{key}",
    "nothing": lambda key: key,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("part", PARTS)
def test_names_of_wrappers_are_taken_off(part, wrapper):
    table, build = PARTS[part]
    tree = tree_of(build())
    tensors = keys.to_torch(tree, table)
    stored = {WRAPPED[wrapper](key): tensor for key, tensor in tensors.items()}
    found = keys.unwrapped(stored, [table], "here")
    assert found[2].keys() == tensors.keys()
    front = WRAPPED[wrapper]("")
    if wrapper not in ("inside", "FSDP"):
        assert found[1] == front
    keys.from_torch(found[2], table, tree, "here")


def test_what_is_not_of_the_model_is_left_out_and_that_is_said(caplog):
    tensors = keys.to_torch(tree_of(region_tower()), keys.REGION_ENCODER)
    stored = {f"model.{key}": tensor for key, tensor in tensors.items()}
    stored |= {"head.weight": np.zeros(3), "head.bias": np.zeros(3)}
    with caplog.at_level("INFO", logger="absl"):
        _, _, found = keys.unwrapped(stored, [keys.REGION_ENCODER], "net.pth")
    assert found.keys() == tensors.keys()
    line = "net.pth: left out: 2 tensors that are not under 'model.' (head.weight, …)"
    assert line in caplog.messages


def test_two_models_in_one_file_are_not_one():
    tensors = keys.to_torch(tree_of(region_tower()), keys.REGION_ENCODER)
    stored = {
        f"{name}.{k}": x for name in ("teacher", "student") for k, x in tensors.items()
    }
    with pytest.raises(InputError) as error:
        keys.unwrapped(stored, [keys.REGION_ENCODER], "net.pth")
    assert str(error.value) == (
        "net.pth: holds 2 models of this kind, under 'teacher.' and 'student.'; keep "
        "one"
    )
    stored = tensors | {f"module.{key}": x for key, x in tensors.items()}
    with pytest.raises(InputError, match=r"fc\.bias and module\.fc\.bias are one t"):
        keys.unwrapped(stored, [keys.REGION_ENCODER], "net.pth")


def test_many_problems_are_counted_and_the_prefix_comes_first():
    tree = tree_of(backbone())
    tensors = keys.to_torch(tree, keys.BACKBONE_OFFICIAL)
    stored = {f"visual.{n}": x for n, x in enumerate(tensors.values())}
    with pytest.raises(InputError) as error:
        keys.from_torch(stored, keys.BACKBONE_OFFICIAL, tree, "cnn.pth")
    assert str(error.value) == (
        f"cnn.pth: all {len(stored)} keys begin with 'visual.'; base.1.bias is missing "
        f"and {len(stored) - 1} more; visual.0 is unexpected and {len(stored) - 1} more"
    )
    assert len(str(error.value)) < 200
