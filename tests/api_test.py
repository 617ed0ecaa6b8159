"""vse_jax.load: what it embeds, and how a similarity splits over cells and words."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vse_jax
from tests.helpers import steps, tiny
from tests.helpers.drafts import draft
from tests.helpers.runs import write_run
from vse_jax import api
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.load import load_model
from vse_jax.config import load_config, save_config, vector_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image
from vse_jax.data.vocabulary import copy_vocabulary
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import make_mesh
from vse_jax.evaluation.encode import Embedder
from vse_search.indexing import check_model
from vse_search.store import Store


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory) -> Path:
    config = draft(tiny.get_config(str(tiny_root)))
    return write_run(config, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def model(run):
    return vse_jax.load(run)


@pytest.fixture(scope="module")
def split(tiny_root):
    return read_split(draft(tiny.get_config(str(tiny_root))), "dev")


def test_embeds_to_the_bit_what_evaluation_does(model, run, split, tiny_config):
    tiny_config.mesh.data = 1
    mesh = make_mesh(tiny_config, jax.devices()[:1])
    _, graphdef, arrays, mesh = load_model(tiny_config, run, mesh)
    with CompileCache() as programs:
        embedder = Embedder(tiny_config, graphdef, arrays, mesh, programs)
        expected = embedder.embed(arrays, split)
    np.testing.assert_array_equal(model.encode_images(split.images), expected.images)
    np.testing.assert_array_equal(
        model.encode_captions(split.captions), expected.captions
    )


def test_says_what_it_was_trained_on(model):
    assert model.trained_on == "tiny"


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9])
def test_few_items_get_programs_of_few_rows(model, split, count):
    pictures = model.encode_images(split.images)
    few = model.encode_images(split.images[:count])
    assert few.shape == (count, model.dim)
    np.testing.assert_allclose(few, pictures[:count], atol=1e-6)
    captions = model.encode_captions(split.captions)
    few = model.encode_captions(split.captions[:count])
    np.testing.assert_allclose(few, captions[:count], atol=1e-6)


def test_a_picture_comes_in_many_forms(model, split):
    path = split.images[0]
    with Image.open(path) as picture:
        forms = [path, str(path), load_image(path), picture, model.prepare(path)]
        found = model.encode_images(forms)
    np.testing.assert_array_equal(found, found[:1].repeat(5, axis=0))
    with pytest.raises(InputError, match=r"image 0: float32 \[3, 4, 3\]; what this"):
        model.encode_images([np.zeros((3, 4, 3), np.float32)])


def test_a_bad_picture_is_named_or_skipped(model, split, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    with pytest.raises(InputError, match=r"bad.jpg: not a readable image"):
        model.encode_images([split.images[0], bad])
    found = model.encode_images([bad, split.images[0]], on_bad="skip")
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], model.encode_images(split.images[:2])[0])
    with pytest.raises(InputError, match=r"image 0: an array of float64 \[2, 2\]"):
        model.encode_images([np.zeros((2, 2))])


def test_one_string_is_no_list(model):
    for encode in (model.encode_images, model.encode_captions):
        with pytest.raises(InputError, match=r"a\.jpg: give a list"):
            encode("a.jpg")


def test_threads_may_share_a_model(model, split):
    expected = [model.encode_captions([caption]) for caption in split.captions[:20]]
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(lambda c: model.encode_captions([c]), split.captions[:20])
        )
    np.testing.assert_array_equal(found, expected)


def test_another_model_has_another_fingerprint(model, run, tiny_config, tmp_path):
    assert vse_jax.load(run).fingerprint == model.fingerprint
    other = vse_jax.load(write_run(tiny_config, tmp_path / "other", seed=1))
    assert other.fingerprint != model.fingerprint


def rewritten(run: Path, target: Path, changes) -> Path:
    """A copy of a run, with the same weights, whose config has other values."""
    shutil.copytree(run, target)
    config = draft(load_config(run / "config.json"))
    config.update_from_flattened_dict(changes)
    save_config(config, target / "config.json")
    return target


@pytest.fixture(scope="module")
def kmax_run(tiny_root, tmp_path_factory) -> Path:
    config = draft(tiny.get_config(str(tiny_root)))
    config.image.pool = config.text.pool = "kmax"
    folder = write_run(config, tmp_path_factory.mktemp("runs") / "kmax")
    copy_vocabulary(config, folder)
    return folder


@pytest.fixture(scope="module")
def kmax_model(kmax_run):
    return vse_jax.load(kmax_run)


class TestWhatTheFingerprintTells:
    @pytest.mark.parametrize(
        "changes",
        [
            {"image.pool": "avg"},
            {"image.pool_k": 3},
            {"image.normalise": False},
            {"image.size": 2 * tiny.SIZE},
            {"image.pixels": "imagenet"},
            {"image.resample": "bicubic"},
            {"text.pool": "max"},
            {"text.pool_k": 3},
            {"text.normalise": False},
            {"text.heads": 4},
            {"data.max_tokens": 5},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_every_field_that_decides_vectors(
        self, kmax_model, kmax_run, tmp_path, changes
    ):
        other = vse_jax.load(rewritten(kmax_run, tmp_path / "other", changes))
        assert other.fingerprint != kmax_model.fingerprint

    def test_the_vocabulary(self, kmax_model, kmax_run, tmp_path):
        other = rewritten(kmax_run, tmp_path / "other", {})
        words = (other / "vocab.txt").read_text()
        (other / "vocab.txt").write_text(words.replace("red", "rot"))
        assert vse_jax.load(other).fingerprint != kmax_model.fingerprint

    def test_no_field_that_decides_none(self, kmax_model, kmax_run, split, tmp_path):
        changes = {
            "seed": 7,
            "batch_size": 8,
            "num_epochs": 9,
            "remat": True,
            "data.root": "elsewhere",
            "data.name": "another",
            "data.token_buckets": (8, 16),
            "image.weights": "elsewhere",
            "image.crop_min": 0.9,
            "image.flip": 0.0,
            "image.drop": 0.0,
            "image.feature_dim": 3,
            "image.max_regions": 3,
            "image.vit.heads": 3,
            "text.weights": "elsewhere",
            "text.vocab_threshold": 3,
            "text.word_dim": 3,
            "text.dropout": 0.5,
            "text.augment": 0.0,
            "text.cache_features": True,
            "optimizer.learning_rate": 1.0,
            "loss.margin": 0.5,
            "eval.batch_size": 5,
        }
        decided = vector_fields(load_config(kmax_run / "config.json"))
        assert not decided.keys() & changes.keys()
        other = vse_jax.load(rewritten(kmax_run, tmp_path / "other", changes))
        assert other.fingerprint == kmax_model.fingerprint
        for name, items in (("images", split.images), ("captions", split.captions)):
            found = getattr(other, f"encode_{name}")(items[:9])
            expected = getattr(kmax_model, f"encode_{name}")(items[:9])
            np.testing.assert_allclose(found, expected, atol=2e-6)

    def test_not_how_numbers_are_rounded(self, kmax_model, kmax_run, split):
        other = vse_jax.load(kmax_run, {"compute_dtype": "bfloat16"})
        assert other.fingerprint == kmax_model.fingerprint
        found, expected = (
            m.encode_images(split.images[:4]) for m in (other, kmax_model)
        )
        assert np.sum(found * expected, axis=1).min() > 0.999

    def test_a_field_counts_unless_evaluation_may_change_it(self, kmax_run):
        config = draft(load_config(kmax_run / "config.json"))
        config.text.max_positions, config.text.augment = 31, 0.7
        decided = vector_fields(config)
        assert decided["text.max_positions"] == 31
        assert "text.augment" not in decided

    def test_an_index_of_other_settings_is_refused(self, kmax_run, split, tmp_path):
        short = vse_jax.load(kmax_run, {"data.max_tokens": 5})
        Store.create(
            tmp_path,
            model=short.fingerprint,
            name="m",
            dim=short.dim,
            folder=split.images[0].parent,
        )
        with Store.open(tmp_path, read_only=True) as store:
            check_model(store, short)
            with pytest.raises(InputError, match=r"index of another model .* settings"):
                check_model(store, vse_jax.load(kmax_run))


def test_a_warm_model_compiles_nothing_for_a_query(run, split):
    model = vse_jax.load(run)
    model.warm_up()

    def programs():
        return set(model._programs._made)

    before = programs()
    model.explain(split.images[0], split.captions[0])
    assert programs() == before


class TestExplain:
    @pytest.mark.parametrize("pool", ["gpo", "avg", "max", "kmax", "gem", "fspool"])
    def test_both_parts_sum_to_the_similarity(self, pool, split, tiny_config, tmp_path):
        tiny_config.image.pool = tiny_config.text.pool = pool
        model = vse_jax.load(write_run(tiny_config, tmp_path / "run"))
        picture, caption = split.images[3], split.captions[0]
        found = model.explain(picture, caption)
        images, captions = (
            model.encode_images([picture]),
            model.encode_captions([caption]),
        )
        np.testing.assert_allclose(found.similarity, images[0] @ captions[0], atol=1e-6)
        side = tiny.SIZE // 8
        assert found.cells.shape == (side, side)
        assert abs(found.cells.sum() - found.similarity) < 1e-5
        assert abs(sum(part for _, part in found.words) - found.similarity) < 1e-5
        assert found.cells_method == found.words_method == "exact"
        assert found.cells_shared == found.words_shared == 0

    @pytest.mark.parametrize("pool", ["selfattn", "seq2seq", "map", "ep"])
    def test_other_poolings_have_integrated_gradients(
        self, pool, split, tiny_config, tmp_path
    ):
        tiny_config.image.pool = tiny_config.text.pool = pool
        model = vse_jax.load(write_run(tiny_config, tmp_path / "run"))
        found = model.explain(split.images[3], split.captions[0])
        assert found.cells_method == found.words_method == "integrated gradients"
        similarity = found.similarity
        assert found.cells.sum() == pytest.approx(similarity, rel=1e-2)
        assert found.cells.std() > 0
        words = [part for _, part in found.words]
        assert sum(words) == pytest.approx(similarity, rel=1e-2)
        assert np.std(words) > 0
        if pool in ("selfattn", "ep"):  # of zeros a mean is zero
            assert found.cells_shared == found.words_shared == 0
        # In the image's own direction all is its own: its length is 1.
        image = model.encode_images(split.images[3:4])[0]
        parts = model.image_attributions(split.images[3], image)
        assert parts.sum() == pytest.approx(1, rel=1e-2)

    def test_of_the_first_values_of_each_vector(self, model, run, split):
        """config.dims: what a vector lacks has no part in the similarity."""
        small = vse_jax.load(run, {"dims": 8})
        picture, caption = split.images[3], split.captions[0]
        image, text = small.encode_images([picture]), small.encode_captions([caption])
        for found, whole in (
            (image, model.encode_images([picture])),
            (text, model.encode_captions([caption])),
        ):
            first = whole[:, : small.dim]
            assert small.dim == 8
            np.testing.assert_allclose(found, first / np.linalg.norm(first), atol=1e-6)
        found = small.explain(picture, caption)
        assert found.similarity == pytest.approx(float(image[0] @ text[0]), abs=1e-6)
        assert abs(found.cells.sum() - found.similarity) < 1e-5
        assert abs(sum(part for _, part in found.words) - found.similarity) < 1e-5
        assert small.fingerprint != model.fingerprint
        with pytest.raises(InputError, match=r"dims: 33 is more than embed_dim"):
            vse_jax.load(run, {"dims": 33})

    def test_words_are_whole_and_in_order(self, model):
        found = model.caption_attributions(
            "A red BAR, café.", np.ones(model.dim, np.float32)
        )
        words = [word for word, _ in found]
        assert words == ["[CLS]", "a", "red", "bar", ",", "cafe", ".", "[SEP]"]


class TestRegions:
    @pytest.fixture
    def model(self, tiny_root, tmp_path):
        config = steps.region_config()
        config.data.root = str(tiny_root)  # its vocabulary lies beside it
        return vse_jax.load(write_run(config, tmp_path / "run"))

    def test_sets_of_any_size(self, model):
        c = steps.region_config().image
        rng = np.random.default_rng(0)
        sets = [rng.random((n, c.feature_dim), np.float32) for n in (1, c.max_regions)]
        both = model.encode_images(sets)
        np.testing.assert_allclose(both[0], model.encode_images(sets[:1])[0], atol=1e-6)
        parts = model.image_attributions(sets[1], both[1])
        assert parts.shape == (c.max_regions,)
        assert abs(parts.sum() - 1) < 1e-5

    def test_a_picture_file_is_refused(self, model):
        with pytest.raises(InputError, match=r"image 0: this model takes region"):
            model.encode_images(["a.jpg"])
        c = steps.region_config().image
        with pytest.raises(InputError, match=r"image 0: \d+ regions; .* at most"):
            model.encode_images([np.zeros((c.max_regions + 1, c.feature_dim))])
        features = np.ones((2, c.feature_dim))
        features[1, 0] = np.inf
        with pytest.raises(InputError, match=r"image 1: NaN or infinity in region 1"):
            model.encode_images([np.ones((2, c.feature_dim)), features])


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"config.json: no saved config"):
        vse_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"text.vocb": "x"},
            "overrides: no field 'text.vocb' in the config; did",
        ),
        ({"image.pool": "foo"}, "overrides: config.image.pool: 'foo' is none of"),
        ({"image.pool": None}, "overrides: config.image.pool: None is none of"),
        ({"image.size": "large"}, "overrides: config.image.size: "),
    ],
)
def test_wrong_overrides_are_named(run, overrides, message):
    with pytest.raises(InputError) as error:
        vse_jax.load(run, overrides)
    assert str(error.value).startswith(message)


def test_importing_the_package_loads_no_jax():
    code = "import sys, vse_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        vse_jax.lod  # noqa: B018
    assert vse_jax.load is api.load
