r"""SigLIP2 B/16 on MS-COCO with GPO over its patches and tokens, or with its own heads.

    python main.py --config=configs/coco_siglip2.py:gpo --workdir=runs/siglip2_gpo

After the colon: gpo (default), avg, map (SigLIP's own: the MAP head, the last token) or
finetune, and ",fast" for bfloat16 towers. finetune is map trained so that it keeps what
it knew (docs/training.md): a small rate that warms up, falls by a cosine and is 0.8 of
the layer's above, locked tables of words and positions, and averaged weights. On your
own data, with what should be kept:

    python main.py --config=configs/coco_siglip2.py:finetune --workdir=runs/mine \
      --model=hf://google/siglip2-base-patch16-256 --config.data.root=data/mine \
      --config.data.name=mine --config.data.dev_captions=None --config.eval.split=test \
      --config.eval.retention.root=data/f30k --config.eval.retention.name=f30k \
      --config.eval.retention.split=test
    python main.py --workdir=runs/mine --mode=interpolate

With gpo and avg the towers are fine-tuned at a hundredth of the
new layers' rate, after an epoch in which those train alone; with
--config.optimizer.rules="(('^(image/vit|text/siglip)/',0.0,-1),('.*',1.0,0))" they stay
as they are, and --config.text.cache_features then computes the tokens once (gpo, avg).
Weights: see configs/siglip2_zero_shot.py. No result is known.
"""

from configs import common, siglip2_zero_shot


def get_config(variant: str = ""):
    recipe, variant = common.pick(variant, ("gpo", "map", "avg", "finetune"), "gpo")
    pool = "map" if recipe == "finetune" else recipe
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
        if recipe == "finetune":
            keep_what_it_knew(c)
    else:
        c.optimizer.rules = (("^(image/vit|text/siglip)/", 0.01, 1), (".*", 1.0, 0))
    c.loss.mask_same_image = True
    c.eval.split = "testall"
    return c


def keep_what_it_knew(c):
    """Layer-wise rates, locked tables, a warm-up and a cosine, and averaged weights."""
    c.num_epochs = 5
    c.optimizer.rules = (
        ("^text/siglip/(word|position)/", 0.0, -1),
        (r"^image/vit/(?!norm)(?:layers/(\d+)/)?", 1.0, 0, 0.8),
        (r"^text/siglip/(?!norm)(?:layers/(\d+)/)?", 1.0, 0, 0.8),
        (".*", 1.0, 0),
    )
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 500
    c.optimizer.ema = 0.999
