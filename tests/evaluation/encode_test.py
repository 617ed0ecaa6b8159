"""How items become batches, and how these are read."""

import time

import numpy as np
import pytest
from absl import logging

from configs import coco_grid, coco_region, openmoji
from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.evaluation.encode import Images, batch_sizes, in_batches, read_batches


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
    assert batch_sizes(draft(recipe.get_config()), devices) == expected


def test_what_was_asked_for_has_to_divide():
    config = draft(coco_grid.get_config())
    config.eval.batch_size = 100
    assert batch_sizes(config, 4) == (100, 100)
    with pytest.raises(InputError, match=r"eval\.batch_size: 100 .* the 8 devices"):
        batch_sizes(config, 8)


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


def items(count, bad=(), on_bad="error"):
    """Images of one pixel whose values are their numbers, all but the `bad` ones."""
    config = draft(tiny.get_config())
    config.image.size = 1

    def read(batch, row, number):
        if number in bad:
            raise InputError(f"image {number} is bad")
        batch["images"][row] = number

    return Images(config.image, count, read, on_bad)


def numbers_read(images, sizes, **share):
    order = in_batches(images.order, sizes)
    return [
        (batch["images"][:, 0, 0, 0].astype(int).tolist(), numbers.tolist())
        for batch, numbers in read_batches(images, order, **share)
    ]


@pytest.mark.parametrize(
    ("count", "shape"),
    [(0, (0, 1)), (1, (1, 1)), (3, (1, 8)), (9, (1, 16)), (17, (2, 16))],
)
def test_items_get_the_smallest_batch_that_holds_all(count, shape):
    order = in_batches(np.arange(count), [1, 8, 16])
    assert order.shape == shape
    assert order[order >= 0].tolist() == list(range(count))


def test_processes_read_their_shares():
    shares = [numbers_read(items(3), [4], process=k, processes=2) for k in range(2)]
    assert shares == [[([0, 1], [0, 1])], [([2, 0], [2, -1])]]


@pytest.mark.parametrize(("on_bad", "number"), [("blank", 1), ("skip", -1)])
def test_bad_images_are_logged_and_blank_or_left_out(on_bad, number, logged):
    found = numbers_read(items(3, bad=[1], on_bad=on_bad), [3])
    assert found == [([0, 0, 2], [0, number, 2])]
    assert logged == ["skipped: image 1 is bad"]


@pytest.mark.parametrize("count", [1, 6])
def test_a_bad_image_is_an_error(count):
    images = items(count, bad=[0])
    with pytest.raises(InputError, match="image 0 is bad"):
        numbers_read(images, [2])


def test_one_batch_is_read_ahead():
    reads = []
    images = items(8)
    images.read = lambda batch, row, number: reads.append(number)
    batches = read_batches(images, in_batches(images.order, [2]))
    next(batches)
    time.sleep(0.2)
    assert sorted(reads) == [0, 1, 2, 3]
    batches.close()
