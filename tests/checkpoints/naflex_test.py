"""A NaFlex SigLIP2's folder: images of any aspect, against transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image

import vse_jax
from tests.helpers import siglip
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.folder import model_config
from vse_jax.commands.export_model import export_model
from vse_jax.config import ImageConfig, VitConfig
from vse_jax.data.images import patches_of_aspect
from vse_jax.models.build import build_model
from vse_jax.models.siglip import ViT
from vse_jax.train import train
from vse_search.commands.explain import explain
from vse_search.indexing import update
from vse_search.store import Store

PATCH, GRID, MOST = 8, 4, 20
VIT = {"dtype": np.dtype(np.float32), "rngs": nnx.Rngs(0)}
SIZES = [(61, 90), (90, 61), (20, 33), (200, 11), (30, 200), (3, 2), (1, 1), (64, 64)]
CAPTIONS = ["a Red circle at the LEFT", "", "a blue bar"]


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    vision = siglip.VISION | {"patch_size": PATCH, "num_patches": GRID**2}
    del vision["image_size"]
    config = transformers.Siglip2Config(vision_config=vision, text_config=siglip.TEXT)
    model = transformers.Siglip2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def processor():
    return transformers.Siglip2ImageProcessorPil(
        patch_size=PATCH, max_num_patches=MOST, resample=2
    )


@pytest.fixture(scope="module")
def folder(peer, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("naflex")
    peer.save_pretrained(folder)
    processor.save_pretrained(folder)
    siglip.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return vse_jax.load(folder)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    found = []
    for width, height in SIZES:
        small = rng.integers(0, 256, (3, 3, 3), np.uint8)
        found.append(Image.fromarray(small).resize((width, height)))
    return found


def published(peer, processor, folder, images):
    """Embeddings of images and of `CAPTIONS`, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(CAPTIONS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found = peer(
            input_ids=tokens["input_ids"],
            **processor(images=images, return_tensors="pt"),
        )
    return found.image_embeds.numpy(), found.text_embeds.numpy()


def test_images_of_any_aspect_and_captions_equal_those_of_transformers(
    model, peer, processor, folder, images
):
    expected = published(peer, processor, folder, images)
    found = model.encode_images(images), model.encode_captions(CAPTIONS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(found[0] - np.roll(found[0], 1, axis=0)).max(axis=1).min() > 1e-3
    alone = model.encode_images(images[1:2])  # whatever else is in the batch
    np.testing.assert_allclose(alone, found[0][1:2], atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 1), (1, 20), (4, 4), (5, 3), (2, 7), (1, 1)])
def test_positions_equal_jaxs_antialiased_resize(shape):
    """Also of one column, which PyTorch 2.13's CPU kernel gives its first row only."""
    rows, columns = shape
    sizes = VitConfig(2, hidden=6, layers=0, heads=1, ffn=1, max_patches=1, grid=GRID)
    vit = ViT(ImageConfig(kind="vit", vit=sizes), **VIT)
    vit.patches.kernel[...] = 0 * vit.patches.kernel[...]
    positions = np.asarray(vit.positions[...])
    grid = positions.reshape(GRID, GRID, -1)
    expected = jax.image.resize(grid, (rows, columns, 6), "bilinear")
    patches, lengths = jnp.zeros((1, MOST, 2, 2, 3)), jnp.array([shape])
    found, mask = vit.any_aspect(patches, lengths)
    assert mask.sum() == rows * columns
    expected = vit.norm(expected.reshape(-1, 6))
    np.testing.assert_allclose(found[0, : rows * columns], expected, atol=1e-5)


def test_another_number_of_patches(peer, processor, folder, images):
    more = transformers.Siglip2ImageProcessorPil(
        patch_size=PATCH, max_num_patches=60, resample=2
    )
    model = vse_jax.load(folder, {"image.vit.max_patches": 60})
    expected, _ = published(peer, more, folder, images)
    np.testing.assert_allclose(model.encode_images(images), expected, atol=1e-5)
    fewer, _ = published(peer, processor, folder, images)
    assert np.abs(fewer - expected).max() > 1e-3
    assert model.fingerprint != vse_jax.load(folder).fingerprint


@pytest.mark.parametrize(("patch", "most"), [(16, 256), (14, 729), (8, MOST)])
def test_the_grid_is_that_of_the_processor(patch, most):
    processor = transformers.Siglip2ImageProcessorPil(
        patch_size=patch, max_num_patches=most
    )
    sides = [(4000, 3000), (3024, 4032), (1, 1), (7, 5000), (640, 480), (255, 257)]
    for width, height in sides:
        image = Image.new("RGB", (width, height))
        theirs = processor(images=image, return_tensors="np")["spatial_shapes"][0]
        assert patches_of_aspect(height, width, patch, most) == tuple(theirs)


def test_what_is_prepared_stands_for_the_image(model, images):
    prepared = [model.prepare(image) for image in images]
    assert len({array.shape for array in prepared}) > 4
    found = model.encode_images(prepared)
    np.testing.assert_array_equal(found, model.encode_images(images))
    for shape in ((PATCH, PATCH + 1, 3), (PATCH, 21 * PATCH, 3)):
        with pytest.raises(InputError, match=r"8 · rows, 8 · columns, 3\], 20 patches"):
            model.encode_images([np.zeros(shape, np.float32)])


def test_the_cells_of_an_explanation_lie_as_the_patches(model, images):
    found = model.explain(images[1], "a red bar")
    rows, columns = found.cells.shape
    assert (rows * PATCH, columns * PATCH, 3) == model.prepare(images[1]).shape
    assert rows != columns
    assert found.cells.sum() == pytest.approx(found.similarity, rel=1e-2)


def test_it_indexes_explains_and_is_not_exported(folder, images, tmp_path, model):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(images):
        image.save(pictures / f"{number}.png")
    index = tmp_path / "index"
    facts = {"model": model.fingerprint, "name": model.name, "dim": model.dim}
    Store.create(index, folder=pictures, **facts)
    with Store.open(index, read_only=False) as store:
        assert update(store, model).encoded == len(images)
    config = draft(model_config(folder))
    config.search.update(query="a red bar", like=str(pictures / "1.png"))
    explain(config, folder)
    assert (folder / "explanation.png").is_file()
    with pytest.raises(InputError, match=r"any aspect .* is not exported"):
        export_model(model_config(folder), folder)


def test_any_other_pooling_keeps_real_patches_only(folder, images):
    config = draft(model_config(folder))
    config.image.pool, config.image.drop = "max", 0.5
    encoder = build_model(config, rngs=nnx.Rngs(0)).image
    batch = {
        "patches": jnp.ones((2, MOST, PATCH, PATCH, 3)),
        "grid_lengths": jnp.array([[2, 3], [1, 1]]),
    }
    _, mask = encoder.elements(batch)
    np.testing.assert_array_equal(mask.sum(axis=1), [6, 1])
    _, mask = encoder.elements(batch, train=True, rngs=nnx.Rngs(size=0))
    assert not mask[0, 6:].any()
    assert mask[1].sum() == 1


def test_training_starts_from_the_folder(folder, tiny_config, tmp_path):
    config = tiny_config
    config.image.kind, config.image.pool = "vit", "map"
    config.text.kind, config.text.pool = "siglip", "last"
    config.image.weights = config.text.weights = str(folder)
    config.loss.name = "sigmoid"
    config.num_epochs, config.max_steps = 1, 2
    train(config, tmp_path / "run")
    model = vse_jax.load(tmp_path / "run")
    wide, tall = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 40))
    assert model.prepare(wide).shape == model.prepare(tall).swapaxes(0, 1).shape
    assert model.prepare(wide).shape[0] < model.prepare(wide).shape[1]
    assert np.isfinite(model.encode_images([wide, tall])).all()


def test_positions_that_are_no_square_are_refused(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["num_patches"] = 15
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="num_patches is 15, no square number"):
        vse_jax.load(tmp_path)
