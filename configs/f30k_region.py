"""VSE∞ on Flickr30K with BUTD region features and BERT (paper, Table 2).

    python main.py --config=configs/f30k_region.py --workdir=runs/f30k_region

Published, 1K test: I→T 81.7 / 95.4 / 97.6, T→I 61.4 / 85.9 / 91.5, rsum 513.5.
"""

from configs import coco_region


def get_config(variant: str = ""):
    c = coco_region.get_config(variant)
    c.data.name = "f30k"
    c.data.root = "data/f30k"
    c.eval.split = "test"
    return c
