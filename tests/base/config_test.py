"""Every config builds; configs survive JSON; a run knows its own config."""

import importlib
import json
from pathlib import Path

import pytest

from configs import common
from vse_jax.base.config import check_same_run, flat_fields, load_config, save_config
from vse_jax.base.errors import InputError

CONFIGS = sorted(
    path.stem
    for path in Path("configs").glob("*.py")
    if path.stem not in ("__init__", "common", "saved")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.max_steps = 7
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json", common.base())
    assert flat_fields(loaded) == flat_fields(config)


@pytest.mark.parametrize("name", ["coco_vsepp", "f30k_vsepp", "coco_grid_imagenet"])
def test_an_unknown_variant_is_named(name):
    with pytest.raises(InputError, match=r"\.py:vgg: n"):
        importlib.import_module(f"configs.{name}").get_config("vgg")


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
