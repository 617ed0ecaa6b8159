"""Every config builds; configs survive JSON; a run knows its own config."""

import importlib
import json
from pathlib import Path

import pytest

from configs import coco_grid_imagenet, common
from vse_jax import possible
from vse_jax.base.errors import InputError
from vse_jax.config import (
    ADDED,
    EVALUATION_FREE,
    HOSTS_OWN,
    RESUME_FREE,
    check_same_run,
    flat_fields,
    load_config,
    save_config,
)
from vse_jax.losses import LOSSES
from vse_jax.models.build import IMAGE_ENCODERS, TEXT_ENCODERS
from vse_jax.models.pooling import POOLS
from vse_jax.possible import CHOICES, CONDITIONS, LEAST, SHARES

CONFIGS = sorted(
    path.stem
    for path in Path("configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.max_steps = 7
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json", common.base())
    assert flat_fields(loaded) == flat_fields(config)


RECIPES = [name for name in CONFIGS if name != "gpo_synthetic"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_fast_variant_of_a_recipe_has_bfloat16_towers_and_is_named(name):
    recipe = importlib.import_module(f"configs.{name}").get_config
    published, fast = flat_fields(recipe()), flat_fields(recipe("fast"))
    assert fast == published | {"compute_dtype": "bfloat16"}
    with pytest.raises(InputError, match=":vgg: "):
        recipe("vgg")


def test_variants_go_together():
    fast = coco_grid_imagenet.get_config("resnet152,fast")
    assert fast.compute_dtype == "bfloat16"
    assert tuple(fast.image.backbone.layers) == (3, 8, 36, 3)
    with pytest.raises(InputError, match="one of resnet50, "):
        coco_grid_imagenet.get_config("resnet50,resnet152")


def test_an_unknown_saved_field_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"image": {"colour": 3}}')
    with pytest.raises(InputError, match=r"config\.json: .*colour"):
        load_config(tmp_path / "config.json", common.base())


def test_no_saved_config(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no saved config"):
        load_config(tmp_path / "config.json", common.base())


def test_another_run_is_told_by_its_differing_fields(tmp_path):
    config = common.base()
    save_config(config, tmp_path / "config.json")
    config.num_epochs = 1
    config.mesh.data = 4
    config.eval.split = "dev"
    check_same_run(config, tmp_path / "config.json")
    config.loss.margin = 0.3
    config.image.size = 256
    with pytest.raises(InputError) as error:
        check_same_run(config, tmp_path / "config.json")
    assert str(error.value) == (
        f"{tmp_path}: holds another config's checkpoint; differing fields: "
        "image.size (512 there, 256 here), loss.margin (0.2 there, 0.3 here)"
    )


def test_a_field_newer_than_the_saved_config_had_its_default(tmp_path):
    config = common.base()
    save_config(config, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["image"]["pool_k"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    check_same_run(config, tmp_path / "config.json")
    config.image.pool_k = 9
    with pytest.raises(InputError, match=r"image\.pool_k \(5 there, 9 here\)"):
        check_same_run(config, tmp_path / "config.json")


def test_rules_and_lists_name_fields_that_exist():
    fields = flat_fields(common.base())
    tables = (CHOICES, LEAST, SHARES, ADDED)
    assert not [field for table in tables for field in table if field not in fields]
    for names in (HOSTS_OWN, RESUME_FREE, EVALUATION_FREE, [f for f, _ in CONDITIONS]):
        for name in names:
            assert any(f == name or f.startswith(f"{name}.") for f in fields), name
    assert POOLS.names == possible.POOLS
    assert LOSSES.names == possible.LOSSES
    assert IMAGE_ENCODERS.names == CHOICES["image.kind"]
    assert TEXT_ENCODERS.names == CHOICES["text.kind"]


def test_added_fields_have_their_old_meaning(tmp_path):
    """A run that was saved before a field existed: today's default may differ."""
    config = common.base()
    config.data.dev_captions = 5000
    save_config(config, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["data"]["dev_captions"], saved["remat"], saved["profile"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = load_config(tmp_path / "config.json", common.base())
    assert flat_fields(loaded) == flat_fields(config)
