"""VSE∞ on Flickr30K with grid features of a WSL ResNeXt-101 32×8d and BERT (Table 2).

    python main.py --config=configs/f30k_grid_wsl.py --workdir=runs/f30k_grid_wsl

Published, 1K test: I→T 88.4 / 98.3 / 99.5, T→I 74.2 / 93.7 / 96.8, rsum 550.9.
WSL's weights are CC BY-NC 4.0: models trained from them are non-commercial, too.
"""

from configs import coco_grid_wsl, f30k_grid


def get_config(variant: str = ""):
    c = f30k_grid.get_config(variant)
    coco_grid_wsl.use_wsl(c)
    c.hub.license = "cc-by-nc-4.0"
    return c
