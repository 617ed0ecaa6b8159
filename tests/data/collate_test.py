"""Rows of a batch: shapes, padding, augmentation only with random numbers."""

import numpy as np
import pytest

from vse_jax.data.collate import CaptionCollator, ImageCollator, packing_devices
from vse_jax.data.dataset import read_split
from vse_jax.data.tokenizers import caption_tokenizer


@pytest.fixture
def split(tiny_config):
    return read_split(tiny_config, "train")


def test_a_picture_is_augmented_with_an_rng_only(tiny_config, split):
    rows = ImageCollator(tiny_config, split)
    batch = rows.empty(3)
    assert batch["images"].shape == (3, 32, 32, 3)
    rows.read(batch, 0, 5, None)
    rows.read(batch, 1, 5, np.random.default_rng(0))
    rows.read(batch, 2, 5, None)
    np.testing.assert_array_equal(batch["images"][0], batch["images"][2])
    assert not np.array_equal(batch["images"][0], batch["images"][1])


def test_a_caption_is_padded_with_zeros(tiny_config, split):
    tokens = caption_tokenizer(tiny_config)(split.captions)
    rows = CaptionCollator(tiny_config, tokens, None)
    length, packed = rows.bucket_of(np.arange(5))
    assert (length, packed) == (16, None)
    batch = rows.empty(2, length)
    rows.read(batch, 1, 4, None)
    count = int(tokens.lengths[4])
    np.testing.assert_array_equal(
        batch["token_ids"][1, :count], tokens.ids[tokens.span(4)]
    )
    assert (batch["token_ids"][1, count:] == 0).all()
    assert batch["token_lengths"].tolist() == [1, count]
    assert rows.fits(4, count)
    assert not rows.fits(4, count - 1)


def test_stored_features_stand_in_for_ids(tiny_config, split):
    tokens = caption_tokenizer(tiny_config)(split.captions)
    features = np.arange(2 * len(tokens.ids), dtype=np.float32).reshape(-1, 2)
    rows = CaptionCollator(tiny_config, tokens, features)
    batch = rows.empty(1, 16)
    rows.read(batch, 0, 7, np.random.default_rng(0))  # never augmented
    np.testing.assert_array_equal(
        batch["token_features"][0, : int(tokens.lengths[7])], features[tokens.span(7)]
    )


def test_packed_tokens_have_places_unless_they_are_too_many(tiny_config, split):
    tokens = caption_tokenizer(tiny_config)(split.captions)
    rows = CaptionCollator(tiny_config, tokens, None, pack=1)
    length, packed = rows.bucket_of(np.arange(3))
    total = int(tokens.lengths[:3].sum())
    assert total <= packed < total + 2 * 3
    batch = rows.empty(3, length)
    for row in range(3):
        rows.read(batch, row, row, None)
    rows.set_packed_indices(batch, packed, 3)
    found = batch["packed_indices"]
    assert found.shape == (packed,)
    assert (found[total:] == 3 * length).all()
    ids = batch["token_ids"].reshape(-1)[found[:total]]
    np.testing.assert_array_equal(ids, tokens.ids[:total])
    longer = rows.empty(3, length)
    rows.set_packed_indices(longer, 2, 3)
    assert "packed_indices" not in longer


def test_each_device_packs_the_tokens_of_its_captions(tiny_config, split):
    """Of a batch over four devices, two of them this process's."""
    tokens = caption_tokenizer(tiny_config)(split.captions)
    rows = CaptionCollator(tiny_config, tokens, None, pack=4)
    captions = np.arange(12)
    length, packed = rows.bucket_of(captions)
    most = max(tokens.lengths[captions].reshape(4, 3).sum(axis=1))
    assert most <= packed / 4 < most + 2 * 3
    batch = rows.empty(6, length)
    for row in range(6):
        rows.read(batch, row, row, None)
    rows.set_packed_indices(batch, packed, 12)
    ids = batch["token_ids"].reshape(2, -1)
    for device, found in enumerate(batch["packed_indices"].reshape(2, -1)):
        span = slice(tokens.offsets[3 * device], tokens.offsets[3 * device + 3])
        count = span.stop - span.start
        np.testing.assert_array_equal(ids[device][found[:count]], tokens.ids[span])
        assert (found[count:] == 3 * length).all()


def test_what_packs(tiny_config):
    assert packing_devices(tiny_config, 1) == 1
    assert packing_devices(tiny_config, 8) == 8
    tiny_config.data.on_bad_image = "skip"  # a longer caption may come instead
    assert packing_devices(tiny_config, 1) == 1
    assert packing_devices(tiny_config, 8) == 0
    tiny_config.microbatches = 2
    assert packing_devices(tiny_config, 1) == 0
