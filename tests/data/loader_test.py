"""The batch streams: determinism, sharding, epochs, padding, bad pictures."""

import contextlib
import dataclasses
import itertools
import time

import numpy as np
import pytest
from absl import flags

from tests.helpers.steps import eval_batches
from vse_jax.base.errors import InputError
from vse_jax.data import loader
from vse_jax.data.collate import shapes_of
from vse_jax.data.dataset import Split, read_split
from vse_jax.data.loader import TrainData
from vse_jax.data.regions import NpyRegions
from vse_jax.data.tokenizers import CaptionTokens, caption_tokenizer

BATCH = 16


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    """grain's worker processes read absl's flags, as main.py has parsed them."""
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def config(tiny_config):
    tiny_config.data.workers = "threads"
    tiny_config.data.num_workers = 2
    return tiny_config


def load(config, split="train") -> tuple[Split, CaptionTokens]:
    data = read_split(config, split)
    return data, caption_tokenizer(config)(data.captions)


def take(data: TrainData, count: int, *args, **kwargs) -> list[dict[str, np.ndarray]]:
    with data.batches(*args, **kwargs) as batches:
        return list(itertools.islice(batches, count))


def assert_equal_streams(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def caption_order(data: TrainData, epoch: int) -> np.ndarray:
    """The caption indices [steps, batch] of an epoch."""
    sampler, steps = data.sampler, data.sampler.steps_per_epoch
    positions = map(sampler.position, range(epoch * steps, (epoch + 1) * steps))
    return np.stack([sampler.batch(position) for position in positions])


def indexed_captions(config, name="train"):
    """A split with caption i encoded as length 3, its only word's id i."""
    split = read_split(config, name)
    count = len(split.captions)
    ids = np.stack([np.full(count, 2), np.arange(count), np.full(count, 3)], 1)
    tokens = CaptionTokens(
        ids.astype(np.int32).ravel(),
        np.tile(np.array([-1, 0, -1], np.int16), count),
        np.arange(count + 1) * 3,
        mask_id=4,
        vocab_size=32,
    )
    config.text.augment = 0.0
    return split, tokens


def test_batch(config):
    (batch,) = take(TrainData(config, *load(config)), 1)

    assert set(batch) == {"images", "image_ids", "token_ids", "token_lengths"}
    assert batch["image_ids"].shape == (BATCH,)
    assert batch["images"].shape == (BATCH, 32, 32, 3)
    assert batch["images"].dtype == np.float32
    assert batch["token_ids"].shape == (BATCH, 16)
    assert batch["token_ids"].dtype == batch["token_lengths"].dtype == np.int32
    beyond = np.arange(16) >= batch["token_lengths"][:, None]
    assert (batch["token_ids"][beyond] == 0).all()
    assert (batch["token_ids"][:, 0] == 2).all()  # [CLS]


def test_captions_go_with_their_pictures(config):
    config.image.crop_min, config.image.flip = 1.0, 0.0
    split, tokens = indexed_captions(config)
    images = {
        row: image
        for batch, index in eval_batches(config, split, "images")
        for row, image in zip(index, batch["images"], strict=True)
    }

    for batch in take(TrainData(config, split, tokens), 3):
        for ids, image in zip(batch["token_ids"], batch["images"], strict=True):
            np.testing.assert_array_equal(image, images[ids[1] // 5])


class TestStream:
    def test_same_with_any_threads(self, config):
        data = TrainData(config, *load(config, "dev"))
        many = take(data, 2 * data.sampler.steps_per_epoch)
        config.data.num_workers = 1
        assert_equal_streams(take(data, len(many)), many)

    @pytest.mark.system
    def test_same_with_processes(self, config):
        data = TrainData(config, *load(config))
        threads = take(data, 5, start_step=3)
        config.data.workers = "processes"
        processes = take(data, 5, start_step=3)
        assert_equal_streams(threads, processes)
        # Plain arrays: what a worker shares is gone when the stream is closed.
        assert all(type(v) is np.ndarray for batch in processes for v in batch.values())

    def test_starts_anywhere(self, config):
        data = TrainData(config, *load(config, "dev"))
        steps = data.sampler.steps_per_epoch
        whole = take(data, 2 * steps + 2)
        for start in (1, steps - 1, steps, 2 * steps):
            assert_equal_streams(take(data, 2, start_step=start), whole[start:][:2])

    def test_hosts_share_the_global_batch(self, config):
        config.data.token_buckets = (8, 10, 12, 16)
        data = TrainData(config, *load(config))
        shares = [take(data, 8, process_index=i, process_count=4) for i in range(4)]
        joined = [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert_equal_streams(joined, take(data, 8))

    def test_seed_and_epoch_change_it(self, config):
        data = TrainData(config, *load(config))
        first = take(data, 1)[0]["images"]
        assert (
            first != take(data, 1, start_step=data.sampler.steps_per_epoch)[0]["images"]
        ).any()
        config.seed = 1
        assert (first != take(TrainData(config, *load(config)), 1)[0]["images"]).any()

    def test_augmentation_differs_between_epochs(self, config):
        config.text.augment = 0.5
        data = TrainData(config, *load(config))
        seen = set()
        caption = caption_order(data, 0)[0, 0]
        for epoch in range(8):
            step, row = np.argwhere(caption_order(data, epoch) == caption)[0].tolist()
            start = epoch * data.sampler.steps_per_epoch + step
            seen.add(take(data, 1, start_step=start)[0]["images"][row].tobytes())
        assert len(seen) >= 6  # two crops of so small a picture may be the same


class TestEpoch:
    def test_pairs_at_most_once(self, config):
        data = TrainData(config, *load(config))
        assert data.sampler.steps_per_epoch == 480 // BATCH
        for epoch in range(3):
            assert sorted(caption_order(data, epoch).ravel()) == list(range(480))

    def test_partial_batch_is_dropped(self, config):
        config.batch_size = 50
        data = TrainData(config, *load(config))
        order = caption_order(data, 0)
        assert data.sampler.steps_per_epoch == 480 // 50
        assert len(np.unique(order)) == order.size == 450
        # Another epoch leaves out other captions.
        assert set(order.ravel()) != set(caption_order(data, 1).ravel())

    def test_stream_follows_the_order(self, config):
        """No batch spans epochs: the stream is exactly epoch after epoch."""
        config.batch_size = 50
        split, tokens = indexed_captions(config, "dev")
        data = TrainData(config, split, tokens)
        stream = [batch["token_ids"][:, 1] for batch in take(data, 7)]
        expected = np.concatenate([caption_order(data, epoch) for epoch in range(3)])
        np.testing.assert_array_equal(stream, expected[:7])

    def test_distinct_images(self, config):
        config.batch_size = 20
        config.data.distinct_images = True
        data = TrainData(config, *load(config))
        assert data.sampler.steps_per_epoch == 5 * (96 // 20)
        for epoch in range(3):
            order = caption_order(data, epoch)
            assert len(np.unique(order)) == order.size
            for captions in order:
                assert len(np.unique(captions // 5)) == 20

    def test_too_small_for_a_batch(self, config):
        config.data.distinct_images = True
        config.batch_size = 97
        with pytest.raises(
            InputError, match=r"96 images and 480 captions .*\(config.batch"
        ):
            TrainData(config, *load(config))


def test_one_image_has_no_negatives(config):
    data, tokens = load(config)
    one = dataclasses.replace(
        data, image_ids=data.image_ids[:1], captions=data.captions[:5]
    )
    config.batch_size = 5
    with pytest.raises(InputError, match=r"split 'train' has one image, which leaves"):
        TrainData(config, one, tokens)


class TestRaggedFeatures:
    def test_token_features(self, config):
        split, tokens = load(config)
        features = np.random.default_rng(0).random((len(tokens.ids), 8), np.float32)
        data = TrainData(config, split, tokens, features)

        (batch,) = take(data, 1)

        assert "token_ids" not in batch
        caption = int(caption_order(data, 0)[0, 3])
        length = batch["token_lengths"][3]
        assert length == tokens.lengths[caption]
        values = batch["token_features"][3]
        np.testing.assert_array_equal(values[:length], features[tokens.span(caption)])
        assert (values[length:] == 0).all()

    def test_regions(self, config, tmp_path):
        regions = np.random.default_rng(0).random((96, 6, 8), np.float32) + 1
        np.save(tmp_path / "regions.npy", regions)
        config.image.max_regions, config.image.feature_dim = 7, 8
        split, tokens = load(config)
        config.image.kind = "region"
        mapped = NpyRegions(tmp_path / "regions.npy", split.image_ids)
        regions_split = dataclasses.replace(split, images=None, regions=mapped)
        data = TrainData(config, regions_split, tokens)

        batches = take(data, 5)

        lengths = np.concatenate([batch["region_lengths"] for batch in batches])
        assert 3.8 < lengths.mean() < 5.8  # a fifth of six is dropped
        for batch in batches:
            assert batch["regions"].shape == (BATCH, 7, 8)
            beyond = np.arange(7) >= batch["region_lengths"][:, None]
            np.testing.assert_array_equal((batch["regions"] == 0).all(-1), beyond)
        for batch, index in eval_batches(config, regions_split, "images"):
            np.testing.assert_array_equal(batch["regions"][:, :6], regions[index])
            assert (batch["region_lengths"] == 6).all()


class TestEval:
    @pytest.mark.parametrize("what", ["images", "captions"])
    @pytest.mark.parametrize("hosts", [1, 2])
    def test_everything_once(self, config, what, hosts):
        config.eval.batch_size = 20
        split, tokens = load(config, "dev")
        seen, counts = [], set()
        for host in range(hosts):
            batches = list(eval_batches(config, split, what, tokens, None, host, hosts))
            counts.add(len(batches))
            for batch, index in batches:
                assert index.dtype == np.int32
                assert {len(v) for v in batch.values()} == {len(index)} == {20 // hosts}
                seen += index[index >= 0].tolist()
        total = len(split.image_ids if what == "images" else split.captions)
        assert sorted(seen) == list(range(total))
        assert counts == {-(-total // 20)}

    def test_captions_are_bucketed_by_length(self, config):
        config.data.token_buckets = (8, 10, 12, 16)
        split, tokens = load(config, "dev")
        widths = []
        for batch, index in eval_batches(config, split, "captions", tokens):
            widths.append(batch["token_ids"].shape[1])
            for row, caption in enumerate(index.tolist()):
                length = batch["token_lengths"][row]
                assert length == tokens.lengths[caption]
                ids = batch["token_ids"][row, :length]
                np.testing.assert_array_equal(ids, tokens.ids[tokens.span(caption)])
        assert widths == sorted(widths)
        assert widths[0] < widths[-1]

    def test_not_augmented(self, config):
        split, _ = load(config, "dev")
        a, b = ([x for x, _ in eval_batches(config, split, "images")] for _ in range(2))
        assert_equal_streams(a, b)


class TestBadPictures:
    @pytest.fixture
    def logged(self, monkeypatch):
        lines = []
        monkeypatch.setattr(
            loader.logging, "warning", lambda text, *v: lines.append(text % v)
        )
        return lines

    def damaged(self, config, tmp_path, images):
        """The train split with some of its pictures made unreadable."""
        split, tokens = indexed_captions(config)
        paths = list(split.images)
        for image in images:
            paths[image] = tmp_path / f"{image}.jpg"
            paths[image].write_bytes(b"no picture")
        return dataclasses.replace(split, images=paths), tokens

    @pytest.mark.parametrize(
        "workers", ["threads", pytest.param("processes", marks=pytest.mark.system)]
    )
    def test_error_names_the_file(self, config, tmp_path, workers):
        config.data.workers = workers
        data = TrainData(config, *self.damaged(config, tmp_path, [7]))
        with pytest.raises(InputError, match=r"7.jpg: not a readable image"):
            take(data, data.sampler.steps_per_epoch)

    def test_skip(self, config, tmp_path, logged):
        config.data.on_bad_image = "skip"
        config.data.distinct_images = True
        data = TrainData(config, *self.damaged(config, tmp_path, [7, 8, 9]))

        whole = take(data, data.sampler.steps_per_epoch)
        shares = [
            take(data, data.sampler.steps_per_epoch, process_index=i, process_count=2)
            for i in range(2)
        ]

        for batch, *parts in zip(whole, *shares, strict=True):
            captions = batch["token_ids"][:, 1]
            images = captions // 5
            assert not set(images) & {7, 8, 9}
            assert len(set(images)) == BATCH  # a stand-in repeats no picture
            joined = np.concatenate([part["token_ids"] for part in parts])
            np.testing.assert_array_equal(batch["token_ids"], joined)
        assert len(logged) == 3  # each file once, in however many streams
        assert all(line.startswith("skipped: ") for line in logged)

    def test_nothing_can_stand_in(self, config, tmp_path):
        config.data.on_bad_image = "skip"
        data = TrainData(config, *self.damaged(config, tmp_path, range(96)))
        with pytest.raises(InputError, match="no pair can replace"):
            take(data, 1)

    def test_evaluation_leaves_the_row_blank(self, config, tmp_path, logged):
        split, _ = self.damaged(config, tmp_path, [7])
        with pytest.raises(InputError, match=r"7.jpg"):
            list(eval_batches(config, split, "images"))

        config.data.on_bad_image = "skip"
        rows = {
            i: row
            for batch, index in eval_batches(config, split, "images")
            for i, row in zip(index, batch["images"], strict=True)
        }
        assert (rows[7] == 0).all()
        assert (rows[8] != 0).any()
        assert len(logged) == 1


def test_shapes_are_those_of_the_batches_that_come(config):
    """So that no program is compiled for a batch that a short run never reaches."""
    config.data.token_buckets = tuple(range(3, 30))
    data = TrainData(config, *load(config))
    steps = data.sampler.steps_per_epoch

    def found(batches):
        return {frozenset(shapes_of(batch).items()) for batch in batches}

    def expected(step, last_step):
        return {frozenset(x.items()) for x in data.shapes(step, last_step)}

    batches = take(data, steps + 2)
    assert expected(0, 1000) == found(batches[:steps])
    assert expected(3, 5) == found(batches[3:5])
    assert expected(steps - 1, 1000) == found(batches[steps - 1 : steps])


def test_batch_must_divide_among_processes(config):
    data = TrainData(config, *load(config))
    with pytest.raises(InputError, match="batch of 16 does not divide among 3"):
        take(data, 1, process_count=3)


@pytest.mark.parametrize(("cores", "workers"), [(2, 2), (64, 16)])
def test_auto_workers(config, monkeypatch, cores, workers):
    config.data.workers, config.data.num_workers = "auto", 0
    monkeypatch.setattr(loader, "usable_cores", lambda: cores)
    assert loader._workers(config) == workers


def test_batches_made_ahead_are_bounded_in_bytes(config, monkeypatch):
    made = []
    config.data.workers, config.data.num_workers = "threads", 8
    config.image.size = 256  # 16 pictures of 0.8 MB
    data = TrainData(config, *load(config))
    make = data._batch

    def counted(share, step):
        made.append(step)
        return make(share, step)

    monkeypatch.setattr(data, "_batch", counted)
    for buffer_mb, most in ((1, 1), (26, 2)):
        config.data.buffer_mb = buffer_mb
        made.clear()
        with data.batches() as batches:
            next(batches)
            time.sleep(1)  # for workers that would go on
        assert len(made) <= 1 + most


def test_leaving_early_stops_the_workers(config):
    data = TrainData(config, *load(config))
    with contextlib.suppress(KeyboardInterrupt), data.batches() as batches:
        next(batches)
        raise KeyboardInterrupt
    with pytest.raises(StopIteration):
        next(batches)


def test_other_data_begin_with_an_epoch(config):
    """After 37 steps, which were 2 epochs and a rest, comes epoch 2 from its start."""
    alone = take(TrainData(config, *load(config)), 2, start_step=2 * 30)
    data = TrainData(config, *load(config), first=(37, 2))
    assert_equal_streams(take(data, 2, start_step=37), alone)
    again = TrainData(config, *load(config))
    assert data.shapes(37, 1000) == again.shapes(2 * 30, 1000)
    assert data.sampler.position(37 + 30).epoch == 3
