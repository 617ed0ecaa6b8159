"""Impossible configs are refused, field by field; every recipe is possible."""

import importlib
import re
from pathlib import Path

import pytest

from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.config import check_config, typed

CONFIGS = sorted(
    path.stem
    for path in Path("configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image.kind": "cells"}, "config.image.kind: 'cells' is none of grid, region"),
        ({"text.kind": "gpt"}, "config.text.kind: 'gpt' is none of bert, bigru"),
        ({"image.pool": "median"}, "config.image.pool: 'median' is none of gpo, avg"),
        ({"text.pool_k": 0}, "config.text.pool_k: 0 is less than 1"),
        ({"image.backbone.batch_norm": "off"}, "batch_norm: 'off' is none of frozen"),
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
