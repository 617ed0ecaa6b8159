"""Rows of a batch: shapes, padding, augmentation only with random numbers."""

import numpy as np
import pytest

from vse_jax.data.collate import (
    CaptionCollator,
    ImageCollator,
    packed_indices,
    packed_rows,
    packing_devices,
)
from vse_jax.data.dataset import read_split
from vse_jax.data.tokenizers import CaptionTokens, caption_tokenizer


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


def packing(config, lengths, devices):
    """Of captions of these lengths, whose ids count up."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    tokens = CaptionTokens(ids, np.zeros_like(ids), offsets, mask_id=0, vocab_size=9)
    rows = CaptionCollator(config, tokens, None, pack=devices)
    rows.padded_lengths = (16, 96, 256)
    return rows


def packed_batch(config, lengths, devices, share=slice(None)):
    """(its bucket, a process's share of a batch of captions of these lengths)."""
    rows = packing(config, lengths, devices)
    captions = np.arange(len(lengths))
    length, packed = rows.bucket_of(captions)
    batch = rows.empty(len(captions[share]), length)
    for row, caption in enumerate(captions[share].tolist()):
        rows.read(batch, row, caption, None)
    rows.set_packed_indices(batch, packed, len(lengths))
    return (length, packed), batch


def test_packed_rows_hold_whole_captions(tiny_config):
    lengths = [50, 40, 37, 2, 3, 64, 60, 5]
    (length, packed), batch = packed_batch(tiny_config, lengths, 1)
    assert (length, packed) == (96, 3)  # 127 tokens; 2, 3 and 64; 60 and 5
    places = batch.pop("packed_indices")
    assert places.shape == (3, 128)
    assert [(row < 8 * 96).sum() for row in places] == [127, 69, 65]
    found = batch["token_ids"].reshape(-1)[places[places < 8 * 96]]
    np.testing.assert_array_equal(found, np.arange(1, sum(lengths) + 1))
    # Too few rows: captions that replaced others are longer.
    packing(tiny_config, lengths, 1).set_packed_indices(batch, 2, 8)
    assert "packed_indices" not in batch


@pytest.mark.parametrize("lengths", [[16] * 64, [3] * 4, [140] + [20] * 200])
def test_what_packing_does_not_shorten_stays_padded(tiny_config, lengths):
    """Or a caption of more tokens than a row has."""
    (_, packed), batch = packed_batch(tiny_config, lengths, 1)
    assert packed is None
    assert "packed_indices" not in batch


def test_shorter_captions_never_need_more_rows():
    """Augmentation drops words after the rows were counted."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.integers(1, 100, 40)
        shorter = np.maximum(lengths - rng.integers(0, 50, 40), 1)
        rows = packed_rows(lengths, 128, 1)
        assert packed_indices(shorter, 128, 1, rows) is not None


def test_each_device_packs_the_tokens_of_its_captions(tiny_config):
    """Of a batch over four devices, two of them this process's; one needs two rows."""
    lengths = [2, 30, 4, 5, 60, 60, 1, 7, 50, 9, 10, 11, 3, 60, 60, 60]
    share = slice(4, 12)
    (length, packed), batch = packed_batch(tiny_config, lengths, 4, share)
    assert (length, packed) == (96, 8)
    places = batch["packed_indices"].reshape(2, 2 * 128)
    ids = batch["token_ids"].reshape(2, -1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for device, found in enumerate(places):
        real = found[found < 4 * 96]
        first, last = offsets[4 + 4 * device], offsets[8 + 4 * device]
        np.testing.assert_array_equal(ids[device][real], np.arange(first, last) + 1)


def test_what_packs(tiny_config):
    assert packing_devices(tiny_config, 1) == 1
    assert packing_devices(tiny_config, 8) == 8
    tiny_config.data.on_bad_image = "skip"  # a longer caption may come instead
    assert packing_devices(tiny_config, 1) == 1
    assert packing_devices(tiny_config, 8) == 0
    tiny_config.microbatches = 2
    assert packing_devices(tiny_config, 1) == 0
