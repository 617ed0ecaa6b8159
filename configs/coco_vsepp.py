"""VSE++ on MS-COCO with BUTD region features: the paper's baseline (Table 2).

    python main.py --config=configs/coco_vsepp.py --workdir=runs/coco_vsepp
    python main.py --config=configs/coco_vsepp.py:gru --workdir=runs/coco_vsepp_gru

Average-pooled regions; a caption is BERT's [CLS] vector or, after the colon, the last
state of one GRU (as in Faghri et al., BMVC 2018). All else is configs/coco_region.py's.
Published with BERT, COCO 1K:
I→T 67.9 / 91.9 / 97.0, T→I 54.0 / 85.6 / 92.5, rsum 488.9.
"""

from configs import coco_region, coco_region_bigru, common


def get_config(variant: str = ""):
    text, variant = common.pick(variant, ("bert", "gru"), "bert")
    c = coco_region.get_config(variant)
    use_vsepp(c, text)
    return c


def use_vsepp(c, text: str):
    """The poolings of VSE++, and its GRU where `text` is 'gru'."""
    c.image.pool = "avg"
    c.text.pool = "cls"
    if text == "gru":
        coco_region_bigru.use_bigru(c)
        c.text.layers = 0  # no BiGRU: the pooling is the GRU, over word vectors
        c.text.pool = "seq2seq"
