"""VSE∞ on MS-COCO with BUTD region features and BERT (paper, Table 2).

    python main.py --config=configs/coco_region.py --workdir=runs/coco_region

36 regions of 2048 values an image (precomp/*_ims.npy). The batch of 128 needs 7.3 GB on
one device, as --mode=compile estimates. Published, COCO 1K:
I→T 79.7 / 96.4 / 98.9, T→I 64.8 / 91.4 / 96.3, rsum 527.5; COCO 5K rsum 434.3.
"""

from configs import common


def get_config(variant: str = ""):
    c = common.base(variant)
    c.data.dev_captions = 5000  # the published dev lists are longer
    c.data.captions_per_image = 5  # COCO has up to seven
    c.image.kind = "region"
    c.text.weights = "data/weights/bert-base-uncased"
    c.loss.ramp_epoch = -1
    c.optimizer.rules = common.region_rules()
    c.eval.split = "testall"
    return c
