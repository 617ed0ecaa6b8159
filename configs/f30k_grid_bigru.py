"""VSE∞ on Flickr30K with grid features and a BiGRU (paper, Table 2).

    python main.py --config=configs/f30k_grid_bigru.py --workdir=runs/f30k_grid_bigru

Published, 1K test: I→T 77.9 / 93.7 / 97.4, T→I 57.5 / 83.4 / 90.2, rsum 500.2.
"""

from configs import f30k_grid
from configs.coco_region_bigru import use_bigru


def get_config(variant: str = ""):
    c = f30k_grid.get_config(variant)
    use_bigru(c)
    return c
