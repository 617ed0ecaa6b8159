"""What computes the vectors of images fastest on this CPU (docs/benchmarks.md).

    python -m benchmarks.backends [--model=FOLDER --split=SPLIT]

SigLIP2 B/16-256 with random weights of full size, in batches of 4 images: this package
on each backend, and transformers eager and compiled. The ways take turns in every
round, so that other work on the machine meets all of them. With --model it prints that
model's recalls by each backend instead: what a precision costs.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx
from transformers import SiglipVisionConfig, SiglipVisionModel

import vse_jax
from benchmarks.rows import repeated
from configs import siglip2_zero_shot
from vse_jax.checkpoints.folder import model_config
from vse_jax.config import Config, typed, with_fields
from vse_jax.data.collate import empty_batch, image_shapes
from vse_jax.data.dataset import read_split
from vse_jax.distributed.mesh import on_one_device
from vse_jax.evaluation.backends import ImageBackend
from vse_jax.evaluation.encode import jit_encoders
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.models.build import build_model, split_model

BATCH, ROUNDS = 4, 3
BACKENDS = {
    "vse_jax": ("jax", "float32"),
    "vse_jax, ONNX Runtime": ("onnx", "float32"),
    "vse_jax, OpenVINO": ("openvino", "float32"),
    "vse_jax, OpenVINO bfloat16": ("openvino", "bfloat16"),
}


def on_backend(config: Config, backend: str, precision: str) -> Config:
    """With config.search.backend and precision."""
    fields = {"search.backend": backend, "search.precision": precision}
    return with_fields(config, fields)


def our_ways(config: Config, pixels: np.ndarray) -> dict[str, Callable[[], object]]:
    """This package's: each computes the vectors of `pixels`."""
    config, mesh = on_one_device(config)
    graphdef, model = split_model(build_model(config, rngs=nnx.Rngs(0)))
    batch, numbers = {"images": pixels}, np.arange(len(pixels), dtype=np.int32)
    encode = jit_encoders(graphdef, model, mesh)["encode_images"]
    ways: dict[str, Callable[[], object]] = {}
    for name, (backend, precision) in BACKENDS.items():
        if backend == "jax":
            ways[name] = lambda: jax.block_until_ready(encode(model, batch, numbers))
        else:
            other = ImageBackend(
                on_backend(config, backend, precision), graphdef, model
            )
            ways[name] = lambda other=other: other(batch)  # type: ignore[misc]
    return ways


def their_ways(config: Config, pixels: np.ndarray) -> dict[str, Callable[[], object]]:
    """transformers' vision model of the same sizes."""
    vit = config.image.vit
    sizes = SiglipVisionConfig(
        image_size=config.image.size,
        patch_size=vit.patch,
        hidden_size=vit.hidden,
        num_hidden_layers=vit.layers,
        num_attention_heads=vit.heads,
        intermediate_size=vit.ffn,
    )
    model = SiglipVisionModel(sizes).eval()
    compiled = torch.compile(model)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def run(module) -> object:
        with torch.inference_mode():
            return module(pixel_values=images).pooler_output

    return {
        "transformers": lambda: run(model),
        "transformers, torch.compile": lambda: run(compiled),
    }


def speeds() -> None:
    """Prints images a second of each way, the median of the rounds."""
    # Only images are encoded, with weights that nobody trained.
    fields = {"text.vocab_size": 100, "text.weights": None, "image.weights": None}
    config = with_fields(typed(siglip2_zero_shot.get_config()), fields)
    shapes = image_shapes(config.image, BATCH)
    pixels = empty_batch(shapes)["images"]
    pixels[:] = np.random.default_rng(0).uniform(-1, 1, pixels.shape)
    ways = our_ways(config, pixels) | their_ways(config, pixels)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    turns = {}
    for name, way in ways.items():
        way()  # compiles
        turns[name] = repeated(way, least=1.0)
    rounds = [{name: turn() for name, turn in turns.items()} for _ in range(ROUNDS)]
    for name in ways:
        seconds = statistics.median(found[name] for found in rounds)
        print(f"{name}: {BATCH / seconds:.2f} images/s", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)


def recalls(folder: str, split: str) -> None:
    """Prints a model's recalls of a split by each backend."""
    place = Path(folder)
    saved = model_config(place)
    found = read_split(saved, split)
    assert isinstance(found.images, list)  # of a grid model, from files
    for name, (backend, precision) in BACKENDS.items():
        model = vse_jax.model_of(on_backend(saved, backend, precision), place)
        metrics = retrieval_metrics(
            model.encode_images(found.images),
            model.encode_captions(found.captions),
            found.captions_per_image,
        )
        both = (metrics["i2t"], metrics["t2i"])
        values = [part[recall] for part in both for recall in ("r1", "r5", "r10")]
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"{name}: {shown}; rsum {metrics['rsum']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder: its recalls instead of speeds")
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    if given.model:
        recalls(given.model, given.split)
    else:
        speeds()


if __name__ == "__main__":
    main()
