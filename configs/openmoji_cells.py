"""OpenMoji on the cells of a frozen pretrained CNN: the study of poolings (studies/).

    python main.py --config=configs/openmoji_cells.py --mode=prepare
    python -m studies.cells
    python main.py --config=configs/openmoji_cells.py --workdir=runs/cells

The published region recipe (configs/coco_region.py) at a size that two cores train in
ten minutes: each image is a set of 49 regions of 1280 values, which are the cells of
an EfficientNet-Lite0 (studies/cells.py), and BERT is a frozen 6-layer one whose token
features are computed once. The rate drops at the same share of the training, 60 %.
Measured, beside what other poolings reach: docs/lab/pooling_study.md.
"""

from configs import common
from configs.openmoji import use_openmoji


def get_config(variant: str = ""):
    c = common.base(variant)
    c.num_epochs = 10
    c.embed_dim = 256
    use_openmoji(c)
    c.data.root = "data/openmoji_cells"
    c.data.render_size = 224

    c.image.kind = "region"
    c.image.feature_dim = 1280
    c.image.max_regions = 49

    c.optimizer.lr_update = 6
    return c
