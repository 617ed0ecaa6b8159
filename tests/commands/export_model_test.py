"""--mode=export_model: programs that run without this package: StableHLO and ONNX."""

import json
import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest
from PIL import Image

import vse_jax
from tests.helpers import siglip, steps, tiny
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.commands.export_model import export_model

CAPTIONS = [
    "a Red circle at the LEFT.",
    "the picture of a cross, blue, drawn at the top " * 4,  # is cut
    "[CLS] a bar",
]
# Runs the program of README.txt, for several items and for one.
USE = """
import importlib.util, json, sys
from pathlib import Path
assert importlib.util.find_spec("vse_jax") is None
if Path("image_tower.onnx").exists():
    sys.modules["jax"] = None  # an import of it would raise
given = json.load(sys.stdin)
text = open("README.txt", encoding="utf-8").read().partition("are given:")[2]
import textwrap, numpy as np
for count in (3, 1):
    names = {name: items[:count] for name, items in given.items()}
    for name, kind in (("regions", np.float32), ("region_lengths", np.int32)):
        if name in names:
            names[name] = np.array(names[name], kind)
    exec(textwrap.dedent(text), names)
    np.save(f"{sys.argv[1]}/images{count}.npy", names["image_vectors"])
    np.save(f"{sys.argv[1]}/captions{count}.npy", names["caption_vectors"])
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Three images: larger and smaller, one turned by its notes, one transparent."""
    folder = tmp_path_factory.mktemp("images")
    turned = Image.Exif()
    turned[0x0112] = 6
    tiny.draw("red", "circle", "left").resize((91, 57)).save(
        folder / "a.jpg", exif=turned
    )
    tiny.draw("blue", "cross", "top").resize((20, 33)).save(folder / "b.png")
    clear = tiny.draw("green", "bar", "right").resize((64, 64)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    clear.save(folder / "c.png")
    return sorted(folder.iterdir())


def use(folder: Path, results: Path, environment, **given) -> list[np.ndarray]:
    """Vectors of images and captions, as a process without the package finds them."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", USE, results],
        cwd=folder,
        env=environment,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    names = ("images3", "captions3", "images1", "captions1")
    return [np.load(results / f"{name}.npy") for name in names]


def check(found, images, captions):
    expected = images, captions, images[:1], captions[:1]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_a_grid_model_runs_without_the_package(
    form, tiny_config, images, environment, tmp_path
):
    tiny_config.export.format = form
    tiny_config.data.max_tokens = 24
    run = write_run(tiny_config, tmp_path / "run")
    export_model(tiny_config, run)
    files = list(map(str, images))
    found = use(run / "exported", tmp_path, environment, files=files, captions=CAPTIONS)
    model = vse_jax.load(run)
    check(found, model.encode_images(images), model.encode_captions(CAPTIONS))
    text = (run / "exported" / "README.txt").read_text()
    program = text.partition("are given:")[2].strip().splitlines()
    assert len(program) <= 15


def test_a_published_siglip_runs_without_the_package(images, environment, tmp_path):
    folder = siglip.write_folder(tmp_path / "siglip", siglip.peer())
    model = vse_jax.load(folder)
    export_model(model._config, folder)
    files = list(map(str, images))
    found = use(
        folder / "exported", tmp_path, environment, files=files, captions=CAPTIONS
    )
    check(found, model.encode_images(images), model.encode_captions(CAPTIONS))


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_a_region_model_of_words_runs_without_the_package(form, environment, tmp_path):
    config = steps.region_config()
    config.export.format = form
    config.text.kind, config.text.layers, config.text.vocab_size = "bigru", 1, 12
    words = ["<pad>", "<start>", "<end>", "<unk>"]
    words += ["a", "red", "circle", "picture", "the", "bar", "."]
    vocab = {"word2idx": {w: i for i, w in enumerate(words)}, "idx": len(words)}
    (tmp_path / "words.json").write_text(json.dumps(vocab))
    config.text.vocab = str(tmp_path / "words.json")
    run = write_run(config, tmp_path / "run")
    export_model(config, run)
    c = config.image
    rng = np.random.default_rng(0)
    lengths = [1, c.max_regions, 2]
    regions = np.zeros((3, c.max_regions, c.feature_dim), np.float32)
    for row, count in zip(regions, lengths, strict=True):
        row[:count] = rng.random((count, c.feature_dim))
    found = use(
        run / "exported",
        tmp_path,
        environment,
        regions=regions.tolist(),
        region_lengths=lengths,
        captions=CAPTIONS,
    )
    model = vse_jax.load(run)
    sets = [row[:n] for row, n in zip(regions, lengths, strict=True)]
    check(found, model.encode_images(sets), model.encode_captions(CAPTIONS))


def test_the_programs_are_for_three_platforms_and_of_any_batch(tiny_config, tmp_path):
    """Lowered only: there is no GPU or TPU here."""
    tiny_config.image.pool, tiny_config.text.pool = "fspool", "kmax"
    run = write_run(tiny_config, tmp_path / "run")
    export_model(tiny_config, run)
    for tower in ("image", "text"):
        file = run / "exported" / f"{tower}_tower.stablehlo"
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert str(exported.out_avals[0].shape[0]) == "batch"
        text = exported.mlir_module()
        # JAX's own check of the batch's size is all that is called by name.
        assert set(_calls(text)) <= {"shape_assertion"}
        # Sorting differs by platform, and both ways are there.
        assert "stablehlo.case" in text


def _calls(text: str) -> list[str]:
    return [part.split("(")[0] for part in text.split("stablehlo.custom_call @")[1:]]


def test_without_the_package_of_onnx_one_line_says_how_to_get_it(
    tiny_config, tmp_path, monkeypatch
):
    run = write_run(tiny_config, tmp_path / "run")
    tiny_config.export.format = "onnx"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"config.export.format: the package onnx is"):
        export_model(tiny_config, run)
    assert not (run / "exported").exists()
