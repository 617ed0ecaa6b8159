"""The demo with a smooth maximum over hard negatives.

python main.py --config=examples/smooth_loss/config.py --workdir=runs/smooth
"""

from configs import openmoji


def get_config(variant: str = ""):
    c = openmoji.get_config(variant)
    c.loss.name = "examples.smooth_loss.loss:LogSumExpLoss"
    c.loss.mask_same_image = True
    return c
