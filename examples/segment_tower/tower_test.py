"""Regions and segments go through layers of their own, and a step trains both."""

from examples.segment_tower import tower
from examples.segment_tower.config import get_config
from tests.helpers import steps
from tests.helpers.forks import one_step


def test_a_step_trains_both_kinds(monkeypatch):
    monkeypatch.setattr(tower, "REGIONS", 2)
    config = steps.region_config()
    config.image.update(kind=get_config().image.kind, input="regions")
    changed = one_step(config)
    assert {"image/region/kernel", "image/segment/kernel"} <= changed
