"""The demo with elementwise attention in place of GPO, in both towers.

python main.py --config=examples/attention_pool/config.py --workdir=runs/attention
"""

from configs import openmoji


def get_config(variant: str = ""):
    c = openmoji.get_config(variant)
    pool = "examples.attention_pool.pool:ElementwiseAttentionPool"
    c.image.pool = c.text.pool = pool
    return c
