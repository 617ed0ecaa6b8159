"""SigLIP2 as it was published, without training: a strong start for your own images.

    python main.py --config=configs/siglip2_zero_shot.py \
        --model=hf://google/siglip2-base-patch16-256 --workdir=runs/zero --mode=eval

Without --model, the folder data/weights/siglip2-base-patch16-256 is read; of another
SigLIP name the images' side, too (--config.image.size). Modes index, search and serve
work in the same way.
Published, COCO 5K: R@1 53.2 (T→I) / 69.7 (I→T).
"""

from configs import common


def get_config(variant: str = ""):
    c = common.base(variant)
    use_siglip2(c)
    c.image.pool = "map"
    c.text.pool = "last"
    c.optimizer.rules = ((".*", 0.0, -1),)
    c.eval.split = "testall"
    return c


def use_siglip2(c):
    """SigLIP2 B/16 of 256 px as both towers, with its preprocessing of images."""
    c.embed_dim = 768
    c.data.max_tokens = 64
    c.image.kind = "vit"
    c.image.weights = "data/weights/siglip2-base-patch16-256"
    c.image.size = 256
    c.image.pixels = "siglip"
    c.image.resample = "bilinear"
    c.text.kind = "siglip"
    c.text.weights = c.image.weights
    c.text.vocab_size = 256000
    c.text.max_positions = 64
    c.text.dropout = 0.0
    c.text.augment = 0.0
    c.loss.name = "sigmoid"
    c.loss.ramp_epoch = -1
