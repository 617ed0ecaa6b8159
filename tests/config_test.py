"""Every config builds and is possible; impossible values are named; JSON; resuming."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest

from configs import coco_grid_imagenet
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.config import (
    EVALUATION,
    FIELDS,
    HOST,
    NOBODY,
    RESUME,
    Config,
    check_config,
    check_same_run,
    config_dict,
    flat_fields,
    load_config,
    save_config,
    typed,
    without_password,
)
from vse_jax.losses import LOSSES
from vse_jax.models.build import IMAGE_ENCODERS, TEXT_ENCODERS
from vse_jax.models.pooling import POOLS

CONFIGS = sorted(
    path.stem
    for path in Path("configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.max_steps = 7
    save_config(typed(config), tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == typed(config)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n[:4] in ("coco", "f30k")])
def test_the_paper_takes_five_captions_of_an_image(name):
    c = importlib.import_module(f"configs.{name}").get_config()
    assert c.data.captions_per_image == 5


def test_what_starts_from_wsl_is_shared_under_its_licence():
    def licence(name, *variant):
        c = importlib.import_module(f"configs.{name}").get_config(*variant)
        return c.hub.license

    assert licence("coco_grid_wsl") == licence("f30k_grid_wsl") == "cc-by-nc-4.0"
    assert licence("coco_grid_imagenet", "resnext101") is None


@pytest.mark.parametrize("name", CONFIGS)
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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@host:5432/db", "postgresql://ann@host:5432/db"),
        ("postgresql://ann:secret/@host?secret@host", "postgresql://ann@host"),
        ("postgresql://:secret@/db?host=/tmp", "postgresql://@/db?host=/tmp"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
        ("postgresql://host/?a=1&password=secret&b=2", "postgresql://host/?a=1&b=2"),
        ("postgresql://host:5432/db?a=b", "postgresql://host:5432/db?a=b"),
    ],
)
def test_a_password_is_neither_shown_nor_saved(tmp_path, url, shown):
    assert without_password(url) == shown
    config = typed({"search.url": url})
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json").search.url == shown


def test_an_unknown_saved_field_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"image": {"colour": 3}}')
    with pytest.raises(InputError, match=r"config\.json: .*colour"):
        load_config(tmp_path / "config.json")


def test_no_saved_config(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no saved config"):
        load_config(tmp_path / "config.json")


def test_another_run_is_told_by_its_differing_fields(tmp_path):
    config = draft()
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
    config = draft()
    save_config(config, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["image"]["pool_k"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    check_same_run(config, tmp_path / "config.json")
    config.image.pool_k = 9
    with pytest.raises(InputError, match=r"image\.pool_k \(5 there, 9 here\)"):
        check_same_run(config, tmp_path / "config.json")


def test_short_names_are_of_what_is_there():
    for registry in (POOLS, LOSSES, IMAGE_ENCODERS, TEXT_ENCODERS):
        for name, path in registry.paths.items():
            module, _, attribute = path.partition(":")
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_field_says_what_it_is():
    for name, spec in FIELDS.items():
        assert spec.doc, name
        assert spec.problem(spec.default) is None, name
    assert check_nothing_is_lost(config_dict())


def check_nothing_is_lost(values) -> bool:
    return typed(values) == Config() and flat_fields(values) == flat_fields(Config())


def test_only_a_field_that_may_be_none_may_be_none():
    assert FIELDS["max_steps"].problem(None) is None
    assert FIELDS["seed"].problem(None) == "needs a value"


def test_a_config_is_not_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().data.root = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"size": "large"}}, "config.image.size: 'large' is no number"),
        ({"image": 3}, "no field 'image' in the config"),
        ({"seed": None}, "config.seed: needs a value"),
        ({"data": {"rot": "x"}}, "no field 'data.rot' in the config; did you mean"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(values, message):
    with pytest.raises(InputError, match=message):
        check_config(typed(values))


def test_fields_go_from_free_to_bound():
    """What a host may change, a resume may, too, and evaluation."""
    assert FIELDS["data.root"].free == HOST
    assert FIELDS["data.format"].free == RESUME
    assert FIELDS["data.name"].free == EVALUATION
    assert FIELDS["search.top"].free == RESUME
    assert FIELDS["image.backbone.layers"].free == NOBODY
    assert not FIELDS["hub.license"].shared
    assert FIELDS["image.vit.heads"].read_by == "vit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image.kind": "cells"}, "config.image.kind: 'cells' is none of grid, region"),
        ({"text.kind": "gpt"}, "config.text.kind: 'gpt' is none of bert, bigru"),
        ({"image.pool": "median"}, "config.image.pool: 'median' is none of gpo, avg"),
        ({"text.pool_k": 0}, "config.text.pool_k: 0 is less than 1"),
        ({"image.backbone.batch_norm": "off"}, "batch_norm: 'off' is none of frozen"),
        ({"image.backbone.block": "v3"}, "backbone.block: 'v3' is none of v1"),
        ({"image.backbone.stem": "v3"}, "backbone.stem: 'v3' is none of conv7"),
        ({"image.pixels": "bgr"}, "config.image.pixels: 'bgr' is none of detector"),
        ({"data.format": "zip"}, "config.data.format: 'zip' is none of folder"),
        ({"data.workers": "fibres"}, "config.data.workers: 'fibres' is none of auto"),
        ({"data.on_bad_image": "cry"}, "config.data.on_bad_image: 'cry' is none of"),
        ({"matmul_precision": "low"}, "config.matmul_precision: 'low' is none of"),
        ({"compute_dtype": "int8"}, "config.compute_dtype: 'int8' is none of float32"),
        ({"seed": -1}, "config.seed: -1 is less than 0"),
        ({"max_steps": 0}, "config.max_steps: 0 is less than 1"),
        ({"optimizer.learning_rate": float("nan")}, "learning_rate: nan is less than"),
        ({"optimizer.learning_rate": float("inf")}, "learning_rate: inf is not finite"),
        ({"optimizer.rules": ((".*", float("inf"), 0),)}, "learning-rate factor ≥ 0"),
        ({"image.flip": 1.5}, "config.image.flip: 1.5 is not between 0 and 1"),
        ({"image.crop_min": 0.0}, "config.image.crop_min: not above 0 and at most 1"),
        ({"mesh.data": 0}, "config.mesh: every axis needs a positive number"),
        ({"microbatches": 3}, "config.microbatches: a batch of 128 does not divide"),
        ({"text.heads": 5}, "config.text.heads: does not divide text.hidden = 768"),
        ({"text.kind": "bigru", "text.layers": 0}, "text.layers: 0 needs text.pool"),
        ({"text.kind": "bigru", "text.cache_features": True}, "a BiGRU has no token"),
        (
            {"text.kind": "siglip", "text.pool": "last", "text.cache_features": True},
            "'last' reads the padding",
        ),
        (
            {"image.kind": "vit", "image.pool": "map"},
            "image.pool: 'map' gives vectors of image.vit.hidden = 768, not of embed_",
        ),
        ({"image.kind": "vit", "image.vit.heads": 5}, "image.vit.heads: does not div"),
        ({"image.kind": "vit", "image.size": 8}, "image.vit.patch: larger than image"),
        ({"text.cache_features": True}, "text.cache_features: needs text.augment = 0"),
        ({"data.token_buckets": ()}, "config.data.token_buckets: needs positive"),
        ({"image.backbone.layers": (1, -2)}, "backbone.layers: needs positive whole"),
        ({"optimizer.rules": (("(", 1.0, 0),)}, "is not (regex, learning-rate factor"),
        ({"optimizer.rules": ((".*", -1.0, 0),)}, "learning-rate factor ≥ 0"),
        ({"optimizer.rules": ((".*", 1.0, 0, 0.8),)}, "a group for the layer's number"),
        ({"optimizer.rules": (("(.*)", 1.0, 0, 1.5),)}, "with a decay, 0 … 1"),
        ({"optimizer.lora.on": "("}, "lora.on: not a regular expression"),
        ({"dims": 1025}, "config.dims: 1025 is more than embed_dim = 1024"),
        ({"loss.matryoshka": (64, 64)}, "matryoshka: needs rising numbers below"),
        ({"loss.matryoshka": (0, 64)}, "matryoshka: needs rising numbers below"),
        ({"loss.matryoshka": (64, 1024)}, "matryoshka: needs rising numbers below"),
        ({"interpolate.alphas": (0.5, 1.5)}, "alphas: 1.5 is not between 0 and 1"),
        ({"interpolate.alphas": ()}, "alphas: needs at least one number"),
        (
            {"optimizer.weight_decay_on": "["},
            "weight_decay_on: not a regular",
        ),
        ({"optimizer.name": "lion"}, "config.optimizer.name: 'lion' is none of adamw"),
        ({"profile": "7"}, "config.profile: '7' is not FIRST:LAST"),
        ({"profile": "7:3"}, "config.profile: '7:3' is not FIRST:LAST"),
        (
            {"search.exclude": ("a", 1)},
            "config.search.exclude: ('a', 1) are no patterns",
        ),
        ({"search.after": "today"}, "config.search.after: 'today' is no day, such as"),
        ({"search.host": "0.0.0.0"}, "config.search.token: needed to serve beyond"),
        (
            {"search.hosts": ("http://nas",)},
            "config.search.hosts: 'http://nas' is no name of",
        ),
    ],
)
def test_an_impossible_value_is_named(changes, message):
    config = draft()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=re.escape(message)):
        check_config(config)


def test_all_impossible_values_are_named_at_once():
    config = draft()
    config.update_from_flattened_dict(
        {"image.size": 0, "text.heads": 5, "mesh.fsdp": 0}
    )
    with pytest.raises(InputError) as error:
        check_config(config)
    for field in ("config.image.size", "config.text.heads", "config.mesh"):
        assert f"{field}: " in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_possible(name):
    check_config(typed(importlib.import_module(f"configs.{name}").get_config()))
