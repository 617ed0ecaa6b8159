import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import golden_weights
from vse_jax.checkpoints.torch import keys
from vse_jax.config import BackboneConfig
from vse_jax.models.resnet import ResNet

pytestmark = pytest.mark.golden


def build(**fields):
    cnn = BackboneConfig(**fields)
    return ResNet(cnn, dtype=np.dtype("float32"), rngs=nnx.Rngs(0))


def golden_resnet(table, prefix, **fields):
    return golden_weights.golden_module(lambda: build(**fields), table, prefix)


def check_features(model, golden):
    images = golden["image_nchw"].astype(np.float32).transpose(0, 2, 3, 1)
    grid = jax.jit(lambda x: model(x))(jnp.asarray(images))
    features = np.asarray(grid).reshape(len(grid), -1, grid.shape[-1])
    assert features.shape == tuple(golden["features_shape"])
    head = features[:, :, :64]
    assert golden_weights.relative_error(head, golden["features_head"]) < 1e-4
    norm = np.linalg.norm(features)
    np.testing.assert_allclose(norm, golden["features_norm"], rtol=1e-4)


def test_detector_features_equal_the_official_ones():
    layers = tuple(golden_weights.load("backbone_detector")["layers"].tolist())
    model = golden_resnet(
        keys.BACKBONE_OFFICIAL, "backbone.", block="v1", layers=layers
    )
    for size in ("s64", "s96x80", "s75x107"):  # even and odd grids before the max pool
        check_features(model, golden_weights.load("backbone_detector", f"{size}."))


@pytest.mark.parametrize(
    ("case", "groups", "group_width"), [("resnet", 1, 64), ("resnext32x8", 32, 8)]
)
def test_torchvision_features_equal_the_official_ones(case, groups, group_width):
    golden = golden_weights.load("backbone_torchvision")
    model = golden_resnet(
        keys.BACKBONE_TORCHVISION,
        f"{case}.",
        block="torchvision",
        layers=tuple(golden["layers"].tolist()),
        groups=groups,
        group_width=group_width,
    )
    check_features(model, golden_weights.load("backbone_torchvision", f"{case}."))


def test_patch_stem_and_basic_blocks_give_the_expected_grid():
    model = build(block="basic", stem="patch", layers=(1, 2), width=8)
    images = jax.random.normal(jax.random.key(0), (2, 18, 24, 3))
    grid = model(images)
    assert grid.shape == (2, 2, 3, 16)  # 18 px: four whole patches, then halved
    np.testing.assert_array_equal(model(images[:, :16]), grid)


def test_trained_norms_update_and_frozen_ones_do_not():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    for norm in ("frozen", "train"):
        model = build(
            block="basic", stem="patch", layers=(1,), width=8, batch_norm=norm
        )
        model(images, train=True)
        assert (model.layer1[0].bn2.mean[...] == 0).all() == (norm == "frozen")
