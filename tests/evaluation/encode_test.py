"""How many images and captions an evaluation embeds at a time."""

import pytest

from configs import coco_grid, coco_region, openmoji
from vse_jax.base.errors import InputError
from vse_jax.evaluation.encode import batch_sizes


@pytest.mark.parametrize(
    ("recipe", "devices", "expected"),
    [
        (openmoji, 1, (128, 128)),
        (coco_grid, 1, (15, 128)),  # of 512 px
        (coco_grid, 8, (120, 128)),
        (coco_region, 256, (256, 256)),  # 128 does not divide
        (coco_region, 6, (132, 132)),
    ],
)
def test_they_follow_the_pictures_and_the_devices(recipe, devices, expected):
    assert batch_sizes(recipe.get_config(), devices) == expected


def test_what_was_asked_for_has_to_divide():
    config = coco_grid.get_config()
    config.eval.batch_size = 100
    assert batch_sizes(config, 4) == (100, 100)
    with pytest.raises(InputError, match=r"eval\.batch_size: 100 .* the 8 devices"):
        batch_sizes(config, 8)
