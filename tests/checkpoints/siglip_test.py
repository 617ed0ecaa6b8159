"""A SigLIP's Hugging Face folder: what vse_jax.load, training and modes make of it."""

import csv
import dataclasses
import json
import shutil
import string
import urllib.request
from importlib import resources

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vse_jax
from tests.helpers import programs, siglip, tiny
from tests.helpers.drafts import draft
from vse_jax.api import model_of
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.folder import model_config, model_languages
from vse_jax.checkpoints.siglip import (
    resize_positions,
    resolve_siglip,
    siglip_config,
)
from vse_jax.commands.evaluate import evaluate
from vse_jax.data.collate import empty_batch, image_shapes, prepare_image, put_image
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image, preprocess
from vse_jax.data.tokenizers import PieceTokenizer, read_siglip_tokenizer
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.train import train
from vse_search.commands.explain import explain

CAPTIONS = [
    "a Red circle at the LEFT",
    "",
    "  two  spaces, and ünknown letters",
    "the picture of a cross, blue, drawn at the top and in the middle of it all",
]


@pytest.fixture(scope="module")
def peer():
    return siglip.peer()


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    return siglip.write_folder(tmp_path_factory.mktemp("siglip"), peer)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    drawn = [tiny.draw("red", "circle", "left"), tiny.draw("blue", "bar", "top")]
    paths = []
    for number, (size, picture) in enumerate(
        zip([(61, 90), (20, 33)], drawn, strict=True)
    ):
        paths.append(folder / f"{number}.png")
        picture.resize(size).save(paths[-1])
    return paths


def ids_of(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="np"
    )["input_ids"]


def tokenizer_of(folder):
    pieces = read_siglip_tokenizer(folder / "tokenizer.json")
    return PieceTokenizer(pieces, siglip.POSITIONS)


def test_captions_become_the_token_ids_of_transformers(folder):
    tokens = tokenizer_of(folder)(CAPTIONS)
    expected = ids_of(folder)
    for caption, row in enumerate(expected):
        found = tokens.ids[tokens.span(caption)]
        np.testing.assert_array_equal(found, row[: len(found)])
        assert (row[len(found) :] == siglip.PAD).all()
    assert tokens.lengths[1] == 1  # <eos>
    assert tokens.lengths.max() == siglip.POSITIONS


def two_hundred_captions():
    """Of every 37th drawing, and what people type besides."""
    rows = resources.files("vse_jax.data.prepare") / "openmoji_captions.csv"
    with rows.open(encoding="utf-8") as file:
        found = [row["caption1"] for row in csv.DictReader(file)][::24]
    hard = [
        *("", "   ", "tab\there", "two\nlines", "  lead", "trail  ", "a  b   c"),
        *(
            "Ünïcödé CAFÉ",
            "日本語の文",
            "😀 a dog",
            "ＦＵＬＬ ｗｉｄｔｈ",
            "ﬁne",
            "Straße",
        ),
        *("İstanbul ẞ ǅ", "e\u0301clair", 'don\'t, "stop" 3.5%!', "<eos> <pad>"),
        *("<bos>a", "a-b_c (d) [e]", "word " * 100),
    ]
    return found[: 200 - len(hard)] + hard


def assert_same_ids(tokens, expected, pad):
    assert len(tokens) == len(expected) == 200
    for caption, row in enumerate(expected):
        found = tokens.ids[tokens.span(caption)]
        np.testing.assert_array_equal(found, row[: len(found)])
        assert set(row[len(found) :]) <= {pad}


def test_two_hundred_captions_are_those_of_siglip2s_tokenizer(tmp_path):
    captions = two_hundred_captions()
    siglip.write_tokenizer(tmp_path, 600, texts=[x.lower() for x in captions[:150]])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.Siglip2Tokenizer)
    expected = theirs(captions, padding="max_length", truncation=True, max_length=64)
    pieces = read_siglip_tokenizer(tmp_path / "tokenizer.json")
    tokens = PieceTokenizer(pieces, 64)(captions)
    assert_same_ids(tokens, expected["input_ids"], siglip.PAD)
    assert len(np.unique(tokens.ids)) > 200


def test_the_first_siglip_reads_no_punctuation(tmp_path):
    """What SiglipTokenizer does to a caption before its pieces are looked up."""
    # A text's "<eos>" is a token, and keeps its signs.
    captions = [x for x in two_hundred_captions() if "<" not in x]
    siglip.write_tokenizer(tmp_path, 600, texts=[x.lower() for x in captions[:150]])
    file = tmp_path / "tokenizer.json"
    plain = PieceTokenizer(read_siglip_tokenizer(file), 64)
    bare = str.maketrans("", "", string.punctuation)
    canonical = [" ".join(x.lower().translate(bare).split()) for x in captions]
    expected = plain(canonical)
    change(tmp_path / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    tokens = PieceTokenizer(read_siglip_tokenizer(file), 64)(captions)
    np.testing.assert_array_equal(tokens.ids, expected.ids)
    np.testing.assert_array_equal(tokens.offsets, expected.offsets)
    assert not np.array_equal(tokens.ids, plain(captions).ids)


def test_pieces_belong_to_words(folder):
    tokenizer = tokenizer_of(folder)
    tokens = tokenizer([CAPTIONS[0]])
    words = tokenizer.words(CAPTIONS[0])
    assert words == ["a", "Red", "circle", "at", "the", "LEFT"]
    assert tokens.words[-1] == -1
    assert set(tokens.words[:-1].tolist()) <= set(range(len(words)))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_pictures_are_prepared_as_the_processor_does(pictures, resample):
    size = {"height": siglip.SIZE, "width": siglip.SIZE}
    number = {"bilinear": 2, "bicubic": 3}[resample]
    processor = transformers.SiglipImageProcessorPil(size=size, resample=number)
    for path in pictures:
        image = load_image(path)
        found = preprocess(image, siglip.SIZE, "siglip", resample)
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        apart = np.abs(found - expected.transpose(1, 2, 0)).max()
        assert apart <= 1e-6


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("RGB", (480, 640)),
        ("RGB", (640, 427)),
        ("RGB", (3, 2)),
        ("RGB", (1, 1)),
        ("RGB", (4032, 3024)),
        ("L", (300, 200)),
        ("RGBA", (300, 200)),
        ("P", (64, 65)),
    ],
)
def test_images_that_people_have_are_prepared_as_the_processors_do(
    mode, size, flexible
):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)
    theirs = image.convert("RGB")  # of which the alpha is opaque
    config = draft().image
    config.update(kind="vit", size=256, pixels="siglip", resample="bilinear")
    if flexible:
        config.vit.max_patches = 256
        processor = transformers.Siglip2ImageProcessorPil(resample=2)
    else:
        square = {"height": 256, "width": 256}
        processor = transformers.SiglipImageProcessorPil(size=square, resample=2)
    expected = processor(images=theirs, return_tensors="np")
    batch = empty_batch(image_shapes(config, 1))
    put_image(batch, 0, prepare_image(load_image(image), config), config)
    values = expected["pixel_values"][0]
    if flexible:
        found = batch["patches"][0].reshape(256, -1)
        np.testing.assert_array_equal(batch["grid_lengths"], expected["spatial_shapes"])
    else:
        found, values = batch["images"][0], values.transpose(1, 2, 0)
    assert np.abs(found - values).max() <= 1e-6


def test_what_a_model_was_trained_on_and_in_which_languages(folder, tmp_path):
    """Google's SigLIP2 by its name, languages by the card's header."""
    copy = shutil.copytree(folder, tmp_path / "siglip2-base-patch16-256")
    model = vse_jax.load(copy)
    assert (model.trained_on, model.languages) == ("webli", [])
    for header, expected in (
        ("license: mit\nlanguage: de\n", ["de"]),
        ("language:\n- de\n- en\n- no\n", ["de", "en"]),  # which YAML takes for false
        ("language: [\n", []),
        ("language: {a: b}\n", []),
        ("- language\n", []),
    ):
        (copy / "README.md").write_text(f"---\n{header}---\n# A model\n")
        assert model_languages(copy) == expected


def test_load_gives_the_published_model(folder, pictures, peer):
    model = vse_jax.load(folder)
    assert model.trained_on is None  # its folder does not say
    assert model.dim == siglip.VISION["hidden_size"]
    processor = transformers.SiglipImageProcessorPil(
        size={"height": siglip.SIZE, "width": siglip.SIZE}, resample=2
    )
    images = [load_image(path) for path in pictures]
    with torch.no_grad():
        expected = peer(
            input_ids=torch.from_numpy(ids_of(folder)),
            pixel_values=processor(images=images, return_tensors="pt")["pixel_values"],
        )
    found = model.encode_images(pictures)
    np.testing.assert_allclose(found, expected.image_embeds.numpy(), atol=1e-5)
    captions = model.encode_captions(CAPTIONS)
    np.testing.assert_allclose(captions, expected.text_embeds.numpy(), atol=1e-5)
    scale, bias = np.exp(2.0), -3.0
    loss = model._arrays["params"]["loss"]
    np.testing.assert_allclose(np.exp(loss["log_scale"]), scale, rtol=1e-6)
    np.testing.assert_allclose(loss["bias"], bias)
    logits = scale * found @ captions.T + bias
    np.testing.assert_allclose(logits, expected.logits_per_image.numpy(), atol=1e-4)


def test_folders_that_transformers_saves_today_are_the_same_model(
    folder, peer, tmp_path
):
    expected = vse_jax.load(folder).encode_captions(CAPTIONS)

    def nested(copy):
        """SiglipProcessor.save_pretrained of transformers 5."""
        size = {"height": siglip.SIZE, "width": siglip.SIZE}
        images = transformers.SiglipImageProcessorPil(size=size, resample=2)
        captions = transformers.AutoTokenizer.from_pretrained(copy)
        for file in ("preprocessor_config.json", "tokenizer_config.json"):
            (copy / file).unlink()
        transformers.SiglipProcessor(images, captions).save_pretrained(copy)
        assert (copy / "processor_config.json").is_file()
        assert not (copy / "preprocessor_config.json").exists()

    def sharded(copy):
        (copy / "model.safetensors").unlink()
        peer.save_pretrained(copy, max_shard_size="10KB")

    def pickled(copy):
        (copy / "model.safetensors").unlink()
        torch.save(
            {f"module.{key}": x for key, x in peer.state_dict().items()},
            copy / "pytorch_model.bin",
        )

    for form in (nested, sharded, pickled):
        copy = shutil.copytree(folder, tmp_path / form.__name__)
        form(copy)
        model = vse_jax.load(copy)
        np.testing.assert_array_equal(model.encode_captions(CAPTIONS), expected)


def test_a_nested_processor_is_checked_as_the_other(copy):
    old = copy / "preprocessor_config.json"
    content = json.loads(old.read_text())
    file = copy / "processor_config.json"
    file.write_text(json.dumps({"image_processor": content | {"do_rescale": False}}))
    with pytest.raises(InputError, match=r"processor_config\.json: do_rescale is Fal"):
        vse_jax.load(copy)
    file.write_text(json.dumps({"processor_class": "SiglipProcessor"}))  # version 4's
    vse_jax.load(copy)


def change(file, part=None, **fields):
    content = json.loads(file.read_text())
    (content[part] if part else content).update(fields)
    file.write_text(json.dumps(content))


def test_python_and_the_command_line_make_the_same_index(folder):
    model = vse_jax.load(folder)
    config = model_config(folder)
    assert model_of(config, folder).fingerprint == model.fingerprint
    smaller = vse_jax.load(folder, {"image.size": siglip.SIZE // 2})
    assert smaller.fingerprint != model.fingerprint


def test_another_architecture_is_refused_with_all_its_differences(copy):
    change(copy / "config.json", "vision_config", hidden_act="gelu", num_channels=1)
    change(copy / "config.json", "text_config", layer_norm_eps=1e-5)
    with pytest.raises(InputError) as error:
        vse_jax.load(copy)
    assert str(error.value) == (
        f"{copy}/config.json: vision_config.hidden_act is 'gelu', not "
        "'gelu_pytorch_tanh'; vision_config.num_channels is 1, not 3; "
        "text_config.layer_norm_eps is 1e-05, not 1e-06"
    )


def test_sizes_that_the_tensors_do_not_have_are_named_together(copy):
    change(copy / "config.json", "vision_config", num_hidden_layers=3)
    change(copy / "config.json", "text_config", intermediate_size=50)
    with pytest.raises(InputError) as error:
        vse_jax.load(copy)
    text = str(error.value)
    assert "model.safetensors: " in text
    assert "vision_model.encoder.layers.2.mlp.fc1.weight is missing" in text
    assert "layers.0.mlp.fc1.weight has shape [40, 16], expected [50, 16]" in text
    assert "\n" not in text


def test_another_model_is_named(copy):
    change(copy / "config.json", model_type="siglip3")
    with pytest.raises(InputError, match=r"config\.json: model_type is 'siglip3'"):
        vse_jax.load(copy)


def test_other_pixels_are_refused(copy):
    change(copy / "preprocessor_config.json", image_mean=[0.4] * 3, resample=1)
    with pytest.raises(InputError, match=r"image_mean is .*; resample is 1, not 2"):
        vse_jax.load(copy)


def test_another_tokenizer_is_refused(copy):
    siglip.write_tokenizer(copy, vocab=siglip.VOCAB - 1)
    with pytest.raises(InputError, match=r"tokenizer\.json: 89 tokens, but .* is 90"):
        vse_jax.load(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer"):
        vse_jax.load(copy)
    siglip.write_tokenizer(copy)
    change(copy / "tokenizer_config.json", padding_side="left")
    with pytest.raises(InputError, match=r"padding_side is not 'right'"):
        vse_jax.load(copy)


def test_sizes_are_settled_but_not_the_pictures(folder, pictures):
    config = draft(siglip_config(folder))
    config.image.size = 48
    config.image.vit.hidden = config.text.max_positions = config.embed_dim = 7
    config = resolve_siglip(config)
    assert config.image.size == 48
    assert dataclasses.asdict(config.image.vit) == {
        "patch": 8,
        "hidden": 24,
        "layers": 2,
        "heads": 3,
        "ffn": 40,
        "max_patches": None,
        "grid": 16,
    }
    assert (config.text.max_positions, config.embed_dim) == (siglip.POSITIONS, 24)
    vectors = vse_jax.load(folder, {"image.size": 48}).encode_images(pictures)
    assert vectors.shape == (2, 24)
    assert np.isfinite(vectors).all()


def test_what_words_and_padding_add_is_the_similarity(folder, pictures):
    model = vse_jax.load(folder)
    vector = model.encode_images(pictures[:1])[0]
    words = model.caption_attributions("a red circle", vector)
    assert [word for word, _ in words][-2:] == ["<eos>", "<pad>"]
    similarity = model.encode_captions(["a red circle"])[0] @ vector
    np.testing.assert_allclose(sum(part for _, part in words), similarity, atol=1e-5)


def test_its_head_is_explained_by_integrated_gradients(folder, pictures, capsys):
    model = vse_jax.load(folder)
    found = model.explain(pictures[0], "a red circle")
    assert found.cells.shape == (4, 4)
    assert found.cells.sum() == pytest.approx(found.similarity, rel=1e-2)
    assert found.cells.std() > 0
    assert found.cells_method == "integrated gradients"
    assert found.words_method == "exact"
    assert abs(found.cells_shared) > 1e-3  # the head has biases: zeros have a vector

    config = draft(model_config(folder))
    config.search.update(query="a red circle", like=str(pictures[0]))
    explain(config, folder)
    first, methods, *_ = capsys.readouterr().out.splitlines()
    assert first == f"similarity {found.similarity:.3f}"
    assert methods == "cells: integrated gradients; words: exact"


@pytest.mark.usefixtures("without_figures")
def test_the_published_model_is_evaluated_without_a_run(folder, tiny_config, tmp_path):
    config = recipe(tiny_config, folder, "map", "last")
    evaluate(config, tmp_path / "new")
    metrics = json.loads((tmp_path / "new" / "eval_test.json").read_text())
    split = read_split(config, "test")
    model = vse_jax.load(folder)
    expected = retrieval_metrics(
        model.encode_images(split.images),
        model.encode_captions(split.captions),
        split.captions_per_image,
    )
    assert metrics["rsum"] == expected["rsum"]
    with pytest.raises(InputError, match="no checkpoints there; train first"):
        evaluate(recipe(tiny_config, folder, "gpo", "gpo"), tmp_path / "new")


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("pool", "dtype", "cached"),
    [("map", "float32", False), ("gpo", "bfloat16", False), ("gpo", "float32", True)],
)
def test_training_starts_from_the_folder(
    pool, dtype, cached, folder, tiny_config, tmp_path
):
    text_pool = "last" if pool == "map" else pool
    config = recipe(tiny_config, folder, pool, text_pool)
    config.compute_dtype = dtype
    config.num_epochs = 1
    config.max_steps = 2
    frozen = ("^(image/vit|text/siglip)/", 0.0, -1)
    config.optimizer.rules = (frozen, (".*", 1.0, 0))
    config.text.cache_features = cached
    train(config, tmp_path / "run")
    arrays = vse_jax.load(tmp_path / "run")._arrays["params"]
    published = vse_jax.load(folder)._arrays["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        (arrays["image"]["vit"], arrays["text"]["siglip"]),
        (published["image"]["vit"], published["text"]["siglip"]),
    )
    scale = float(arrays["loss"]["log_scale"])
    assert (abs(scale - 2) < 0.1) == (pool == "map")  # or starts anew, at log 10


def recipe(config, folder, image_pool, text_pool):
    """The toy data's config with the towers of the folder."""
    config.image.kind, config.image.pool = "vit", image_pool
    config.text.kind, config.text.pool = "siglip", text_pool
    config.image.weights = config.text.weights = str(folder)
    config.embed_dim = siglip.VISION["hidden_size"]
    config.loss.name = "sigmoid"
    config.text.dropout = config.text.augment = 0.0
    return config


def test_its_folder_is_a_workdir_for_every_mode(folder, tiny_root, environment, copy):
    """Evaluated, indexed, searched and served as it came, but not trained in."""
    args = [f"--workdir={copy}", f"--config.data.root={tiny_root}"]
    programs.run([*args, "--mode=eval", "--config.data.name=tiny"], environment)
    metrics = json.loads((copy / "eval_test.json").read_text())
    split = read_split(draft(tiny.get_config(str(tiny_root))), "test")
    model = vse_jax.load(folder)
    expected = retrieval_metrics(
        model.encode_images(split.images),
        model.encode_captions(split.captions),
        split.captions_per_image,
    )
    assert metrics["rsum"] == pytest.approx(expected["rsum"])
    pictures = f"--config.search.pictures={tiny_root}/images"
    programs.run([*args, "--mode=index", pictures], environment)
    query = ["--config.search.query=a red bar", "--config.search.format=json"]
    out, _ = programs.run([*args, "--mode=search", *query], environment)
    found = json.loads(out)
    assert len(found) == 10
    with programs.start(
        [*args, "--mode=serve", "--config.search.port=0"], environment
    ) as server:
        try:
            address = server.stdout.readline().partition(" finds ")[0]
            request = urllib.request.Request(
                f"{address}api/search",
                json.dumps({"query": "a red bar"}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                hits = json.load(answer)["hits"]
        finally:
            server.terminate()
            server.communicate(timeout=30)
    assert [hit["id"] for hit in hits[:10]] == [hit["id"] for hit in found]
    line = programs.one_line_error(args, environment)
    assert line.endswith(
        "holds a model that is not trained here; name another --workdir"
    )


def test_positions_by_hand():
    """Two cells, 0 and 1, as four: at −¼, ¼, ¾ and 1¼ of the way."""
    grid = np.tile(np.float32([0, 1]), 2)[:, None]
    expected = np.tile(np.float32([0, 0.25, 0.75, 1]), 4)[:, None]
    np.testing.assert_allclose(resize_positions(grid, 16), expected, atol=1e-6)


@pytest.mark.parametrize("new", [2, 5, 8, 11, 16])
def test_positions_equal_jaxs_antialiased_resize(new):
    positions = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    expected = jax.image.resize(positions.reshape(8, 8, 3), (new, new, 3), "bilinear")
    found = resize_positions(positions, new * new)
    np.testing.assert_allclose(found, expected.reshape(-1, 3), atol=1e-5)


def test_positions_of_the_same_size_stay_to_the_bit():
    positions = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    assert resize_positions(positions, 64) is positions
