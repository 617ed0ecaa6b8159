import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from configs import coco_grid, coco_grid_wsl
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.checkpoints import pretrained
from vse_jax.checkpoints.torch import keys
from vse_jax.checkpoints.torch.backbones import KINDS, Kind, build, convert_backbone

# One block a stage; the sizes in a block are fixed, so that 20 MB are the smallest.
SMALL = Kind("v1", (1, 1, 1, 1), "detector", 1, 4)


def template():
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build(SMALL))))


@pytest.fixture(autouse=True)
def small_kinds(monkeypatch):
    for name in KINDS:
        monkeypatch.setitem(KINDS, name, SMALL)


@pytest.fixture(scope="module")
def tensors():
    """A small CNN under the official keys; read-only."""
    tree = template()
    tree = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), tree)
    return {
        key: torch.from_numpy(np.array(tensor))
        for key, tensor in keys.to_torch(tree, keys.BACKBONE_OFFICIAL).items()
    }


def base_and_top(tensors):
    return {
        part: {
            key.removeprefix(f"{part}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(part)
        }
        for part in ("base", "top")
    }


def torchvision(tensors):
    parts = {"base.0": "conv1", "base.1": "bn1", "top.0": "layer4"}
    parts |= {f"base.{i + 3}": f"layer{i}" for i in (1, 2, 3)}
    named = {}
    for key, tensor in tensors.items():
        part = next(part for part in parts if key.startswith(f"{part}."))
        named[parts[part] + key.removeprefix(part)] = tensor
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    return named | classifier | {"bn1.num_batches_tracked": torch.tensor(3)}


@pytest.mark.parametrize(
    ("kind", "form"), [("detector", base_and_top), ("wsl", torchvision)]
)
def test_a_backbone_becomes_a_folder_that_loads(tmp_path, tensors, kind, form):
    torch.save(form(tensors), tmp_path / "cnn.pth")
    convert_backbone(tmp_path / "cnn.pth", kind, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"backbone.safetensors", "backbone.json"}
    about = json.loads((tmp_path / "out" / "backbone.json").read_text())
    assert (about["kind"], about["source"]) == (kind, "cnn.pth")
    loaded = pretrained.load_backbone(tmp_path / "out", template())
    for key, array in keys.to_torch(loaded, keys.BACKBONE_OFFICIAL).items():
        np.testing.assert_array_equal(array, tensors[key])


def test_a_config_of_another_kind_is_refused(tmp_path, tensors):
    torch.save(base_and_top(tensors), tmp_path / "cnn.pth")
    convert_backbone(tmp_path / "cnn.pth", "detector", tmp_path / "out")
    pretrained.check_backbone_kind(
        tmp_path / "out", draft(coco_grid.get_config()).image
    )
    other = draft(coco_grid_wsl.get_config()).image
    with pytest.raises(InputError, match=r"pixels: 'imagenet', but .*'detector'"):
        pretrained.check_backbone_kind(tmp_path / "out", other)


def test_a_backbone_of_another_kind_names_what_differs(tmp_path, tensors):
    tensors = {key: x for key, x in tensors.items() if "base.6" not in key}
    tensors["base.5.1.conv1.weight"] = torch.zeros(2)
    torch.save(base_and_top(tensors), tmp_path / "cnn.pth")
    with pytest.raises(InputError) as error:
        convert_backbone(tmp_path / "cnn.pth", "detector", tmp_path / "out")
    assert "base.6.0.conv1.weight is missing" in str(error.value)
    assert "base.5.1.conv1.weight is unexpected" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": 1, "top": 2}, "'base' and 'top' hold no state dicts"),
        ([], "holds no state dict"),
        ({"epoch": 3}, "epoch is no tensor"),
        ({"conv1.weight": torch.full((1,), torch.nan)}, "NaN or infinity in conv1.w"),
    ],
)
def test_a_file_without_a_backbone_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "cnn.pth")
    with pytest.raises(InputError, match=rf"cnn\.pth: .*{message}"):
        convert_backbone(tmp_path / "cnn.pth", "wsl", tmp_path / "out")


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(InputError, match="--kind: 'vgg' is none of detector, imagenet"):
        convert_backbone(tmp_path / "cnn.pth", "vgg", tmp_path / "out")


def test_parameters_and_statistics_may_be_apart(tensors):
    """As the train state keeps them."""
    state = nnx.eval_shape(lambda: build(SMALL))
    _, params, stats = nnx.split(state, nnx.Param, nnx.BatchStat)
    apart = {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(stats),
    }
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    filled = keys.from_torch(arrays, keys.BACKBONE_OFFICIAL, apart, "here")
    assert jax.tree.structure(filled) == jax.tree.structure(apart)
    back = keys.to_torch(filled, keys.BACKBONE_OFFICIAL)
    assert back.keys() == arrays.keys()
