"""VSE∞ on MS-COCO with grid features and BERT (paper, Table 2).

    python main.py --config=configs/coco_grid.py --workdir=runs/coco_grid

ResNet-101 initialised from the BUTD detector, 512 × 512 px. Published for eight 32-GB
V100 GPUs; any mesh gives the same global batch of 128. Published, COCO 1K:
I→T 80.4 / 96.8 / 99.1, T→I 66.4 / 92.1 / 96.7, rsum 531.6; COCO 5K rsum 440.0.
"""

from configs import common


def get_config(variant: str = ""):
    c = common.base(variant)
    c.data.dev_captions = 5000  # the published dev lists are longer
    c.data.captions_per_image = 5  # COCO has up to seven
    c.image.weights = "data/weights/original_updown_backbone"
    c.text.weights = "data/weights/bert-base-uncased"
    c.eval.split = "testall"
    return c
