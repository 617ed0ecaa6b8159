"""VSE∞ on MS-COCO with grid features of an ImageNet CNN and BERT.

    python main.py --config=configs/coco_grid_imagenet.py:resnet152 --workdir=runs/in152

After the colon: resnet50, resnet101 (default), resnet152 or resnext101, and ",fast" for
bfloat16 towers. The weights are torchvision's, imported with convert_torch_weights.py
--backbone into data/weights/imagenet_<name>. The paper lists no test result for these
on COCO.
"""

from configs import coco_grid, coco_grid_wsl, common

LAYERS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext101": (3, 4, 23, 3),
}


def get_config(variant: str = ""):
    cnn, variant = common.pick(variant, tuple(LAYERS), "resnet101")
    c = coco_grid.get_config(variant)
    if cnn == "resnext101":
        coco_grid_wsl.use_wsl(c)
    c.image.pixels = "imagenet"
    c.image.backbone.layers = LAYERS[cnn]
    c.image.weights = f"data/weights/imagenet_{cnn}"
    c.optimizer.rules = common.grid_rules(backbone=0.1)
    return c
