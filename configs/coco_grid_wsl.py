"""VSE∞ on MS-COCO with grid features of a WSL ResNeXt-101 32×8d and BERT (Table 2).

    python main.py --config=configs/coco_grid_wsl.py --workdir=runs/coco_grid_wsl

The CNN was pretrained on 940 M public images with hashtags. Published, COCO 1K:
I→T 84.5 / 98.1 / 99.4, T→I 72.0 / 93.9 / 97.5, rsum 545.4; COCO 5K rsum 468.9.
WSL's weights are CC BY-NC 4.0: models trained from them are non-commercial, too.
"""

from configs import coco_grid


def get_config(variant: str = ""):
    c = coco_grid.get_config(variant)
    use_wsl(c)
    c.hub.license = "cc-by-nc-4.0"
    return c


def use_wsl(c):
    """ResNeXt-101 32×8d: torchvision's block and its standardised RGB pixels."""
    c.image.weights = "data/weights/wsl"
    c.image.pixels = "imagenet"
    c.image.backbone.block = "torchvision"
    c.image.backbone.groups = 32
    c.image.backbone.group_width = 8
