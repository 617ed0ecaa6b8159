"""Towers as programs: those of the published recipes, at full size."""

import importlib

import jax
import jax.export
import numpy as np
import pytest

from tests.helpers.drafts import draft
from vse_jax.checkpoints.export import PLATFORMS, export_encoders
from vse_jax.models.build import abstract_model


@pytest.mark.parametrize(
    ("name", "variant", "embeds"),
    [
        ("coco_grid_wsl", "fast", 1024),
        ("coco_region_bigru", "", 1024),
        ("siglip2_zero_shot", "", 768),
    ],
)
def test_published_towers_are_small_programs_for_all_platforms(name, variant, embeds):
    """Weights are no part of a program. Lowered only: there is no GPU or TPU here."""
    config = draft(importlib.import_module(f"configs.{name}").get_config(variant))
    config.text.vocab_size = config.text.vocab_size or 1000
    graphdef, abstract = abstract_model(config)
    model = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract
    )
    for _, program in export_encoders(config, graphdef, model).values():
        assert len(program) < 1e6
        exported = jax.export.deserialize(bytearray(program))
        assert exported.platforms == PLATFORMS
        (result,) = exported.out_avals
        assert (str(result.shape[0]), result.shape[1]) == ("batch", embeds)
        assert result.dtype == np.float32
