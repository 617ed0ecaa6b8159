"""VSE++ on Flickr30K with BUTD region features: the paper's baseline (Table 2).

    python main.py --config=configs/f30k_vsepp.py --workdir=runs/f30k_vsepp
    python main.py --config=configs/f30k_vsepp.py:gru --workdir=runs/f30k_vsepp_gru

See configs/coco_vsepp.py. Published with BERT, 1K test:
I→T 63.4 / 87.2 / 92.7, T→I 45.6 / 76.4 / 84.4, rsum 449.7.
"""

from configs import common, f30k_region
from configs.coco_vsepp import use_vsepp


def get_config(variant: str = ""):
    text, variant = common.pick(variant, ("bert", "gru"), "bert")
    c = f30k_region.get_config(variant)
    use_vsepp(c, text)
    return c
