"""SigLIP2 B/16 on MS-COCO with GPO over its patches and tokens, or with its own heads.

    python main.py --config=configs/coco_siglip2.py:gpo --workdir=runs/siglip2_gpo

After the colon: gpo (default), avg, or map (SigLIP's own: the MAP head, the last
token), and ",fast" for bfloat16 towers. The towers are fine-tuned at a hundredth of the
new layers' rate, after an epoch in which those train alone; with
--config.optimizer.rules="(('^(image/vit|text/siglip)/',0.0,-1),('.*',1.0,0))" they stay
as they are, and --config.text.cache_features then computes the tokens once (gpo, avg).
Weights: see configs/siglip2_zero_shot.py. No result is known.
"""

from configs import common, siglip2_zero_shot


def get_config(variant: str = ""):
    pool, variant = common.pick(variant, ("gpo", "map", "avg"), "gpo")
    c = common.base(variant)
    siglip2_zero_shot.use_siglip2(c)
    c.image.pool = pool
    c.text.pool = "last" if pool == "map" else pool
    c.data.dev_captions = 5000  # the published dev lists are longer
    c.data.captions_per_image = 5  # COCO has up to seven
    if pool == "map":  # nothing is new
        c.image.drop = 0.0
        c.optimizer.learning_rate = 1e-5
        c.optimizer.rules = ((".*", 1.0, 0),)
    else:
        c.optimizer.rules = (("^(image/vit|text/siglip)/", 0.01, 1), (".*", 1.0, 0))
    c.loss.mask_same_image = True
    c.eval.split = "testall"
    return c
