"""VSE∞ on MS-COCO with BUTD region features and a BiGRU (paper, Table 2).

    python main.py --config=configs/coco_region_bigru.py --workdir=runs/coco_bigru

Words come from data/vocab/coco_precomp_vocab.json, the published file or one made with
--mode=build_vocab. Published, COCO 1K:
I→T 78.5 / 96.0 / 98.7, T→I 61.7 / 90.3 / 95.6, rsum 520.8.
"""

from configs import coco_region


def get_config(variant: str = ""):
    c = coco_region.get_config(variant)
    use_bigru(c)
    c.optimizer.weight_decay = 0.01  # of this recipe alone
    return c


def use_bigru(c):
    """One bidirectional GRU layer over word vectors, both trained from nothing."""
    c.text.kind = "bigru"
    c.text.weights = None
    c.text.vocab_size = 0
    c.text.layers = 1
