"""Batches of images that have any number of captions; loader_test.py has the rest."""

import numpy as np
import pytest

from vse_jax.data.sampler import Epochs, Sampler

COUNTS = np.random.default_rng(0).integers(1, 21, 200)
OFFSETS = np.append(0, np.cumsum(COUNTS))
OWNERS = np.repeat(np.arange(200), COUNTS)


def epoch_of(sampler: Sampler, epoch: int) -> np.ndarray:
    """[steps, batch] of caption numbers."""
    steps = sampler.steps_per_epoch
    positions = map(sampler.position, range(epoch * steps, (epoch + 1) * steps))
    return np.stack([sampler.batch(position) for position in positions])


def test_all_captions_once():
    sampler = Sampler(0, OFFSETS, 16, distinct_images=False)
    batches = epoch_of(sampler, 0)
    assert batches.shape == (OFFSETS[-1] // 16, 16)
    assert len(np.unique(batches)) == batches.size


def test_no_batch_holds_an_image_twice():
    sampler = Sampler(0, OFFSETS, 16, distinct_images=True)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    # 20 passes, each of a twentieth of the captions: its last batch alone is dropped.
    assert first.shape == (20 * (OFFSETS[-1] // 20 // 16), 16)
    for batches in (first, second):
        assert len(np.unique(batches)) == batches.size
        for batch in batches:
            assert len(np.unique(OWNERS[batch])) == 16
    assert (first != second).any()
    replaced = [sampler.replacements(sampler.position(3), column) for column in (0, 1)]
    columns = [{sampler.image_of(caption) for caption in row} for row in replaced]
    assert columns[0].isdisjoint(columns[1])


def test_any_two_images_may_meet():
    """Those with one caption are not in the same pass in every epoch."""
    sampler = Sampler(0, np.append(np.arange(40), 60), 2, distinct_images=True)
    passes = []
    for epoch in range(20):
        batches = epoch_of(sampler, epoch).reshape(sampler.passes, -1)
        passes.append([k for k, row in enumerate(batches) if 0 in row])
    assert len(set(map(tuple, passes))) > 5


@pytest.mark.parametrize("distinct", [False, True])
def test_published_splits_keep_their_order(distinct):
    """Batches of an earlier version, which knew five captions an image only."""
    sampler = Sampler(7, 5 * np.arange(13), 4, distinct)
    rng = np.random.default_rng([7, 2])
    if distinct:
        turns = rng.permuted(np.tile(np.arange(5), (12, 1)), axis=1)
        passes = [rng.permutation(12) for _ in range(5)]
        wanted = [image * 5 + turns[image, k] for k, image in enumerate(passes)]
    else:
        wanted = [rng.permutation(60)]
    np.testing.assert_array_equal(epoch_of(sampler, 2).ravel(), np.concatenate(wanted))


def test_images_of_captions():
    sampler = Sampler(0, OFFSETS, 16, distinct_images=True)
    assert [*map(sampler.image_of, range(OFFSETS[-1]))] == OWNERS.tolist()


def test_positions_need_no_lists():
    sampler = Sampler(0, OFFSETS, 16, True, first_step=30, first_epoch=2)
    epochs = Epochs(int(OFFSETS[-1]), 20, 16, first_step=30, first_epoch=2)
    for step in (30, 100, 1000):
        assert sampler.position(step) == epochs.position(step)
