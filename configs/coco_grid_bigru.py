"""VSE∞ on MS-COCO with grid features and a BiGRU (paper, Table 2).

    python main.py --config=configs/coco_grid_bigru.py --workdir=runs/coco_grid_bigru

The CNN is configs/coco_grid.py's, the text encoder configs/coco_region_bigru.py's.
Published, COCO 1K: I→T 78.0 / 95.8 / 98.5, T→I 62.6 / 90.6 / 96.0, rsum 521.5.
"""

from configs import coco_grid
from configs.coco_region_bigru import use_bigru


def get_config(variant: str = ""):
    c = coco_grid.get_config(variant)
    use_bigru(c)
    return c
