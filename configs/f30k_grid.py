"""VSE∞ on Flickr30K with grid features and BERT (paper, Table 2).

    python main.py --config=configs/f30k_grid.py --workdir=runs/f30k_grid

Published for eight 32-GB V100 GPUs; any mesh gives the same global batch of 128.
Published, 1K test: I→T 81.5 / 97.1 / 98.5, T→I 63.7 / 88.3 / 93.2, rsum 522.3.
"""

from configs import coco_grid


def get_config(variant: str = ""):
    c = coco_grid.get_config(variant)
    c.data.name = "f30k"
    c.data.root = "data/f30k"
    c.eval.split = "test"
    return c
