"""COCO's regions with 12 segments each beside them.

python main.py --config=examples/segment_tower/config.py --workdir=runs/segments
"""

from configs import coco_region
from examples.segment_tower.tower import REGIONS


def get_config(variant: str = ""):
    c = coco_region.get_config(variant)
    c.image.kind = "examples.segment_tower.tower:SegmentEncoder"
    c.image.input = "regions"  # what its batches hold
    c.image.max_regions = REGIONS + 12
    return c
