"""VSE∞ on Flickr30K with BUTD region features and a BiGRU (paper, Table 2).

    python main.py --config=configs/f30k_region_bigru.py --workdir=runs/f30k_bigru

Words come from data/vocab/f30k_precomp_vocab.json, as in configs/coco_region_bigru.py.
Published, 1K test: I→T 76.5 / 94.2 / 97.7, T→I 56.4 / 83.4 / 89.9, rsum 498.1.
"""

from configs import coco_region_bigru


def get_config(variant: str = ""):
    c = coco_region_bigru.get_config(variant)
    c.data.name = "f30k"
    c.data.root = "data/f30k"
    c.eval.split = "test"
    return c
