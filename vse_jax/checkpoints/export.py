"""A model as StableHLO or ONNX, and what prepares its inputs: W/exported/.

Its programs run without this package; README.txt there has one that calls them.
"""

import contextlib
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import Array

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, whole_folder, write_atomically
from vse_jax.base.trees import flatten, merge
from vse_jax.checkpoints.share import TEMPLATES
from vse_jax.checkpoints.torch.torch_file import write_safetensors
from vse_jax.config import Config, keeps_aspect, takes_regions
from vse_jax.data.collate import Shapes, caption_shapes, image_shapes
from vse_jax.data.images import scale_and_shift
from vse_jax.data.tokenizers import caption_tokenizer, padded_lengths
from vse_jax.distributed.runtime import matmul_precision
from vse_jax.models.build import merge_model, split_model
from vse_jax.models.vse import prefix

PLATFORMS = ("cpu", "cuda", "tpu")
_RESIZED = {
    "opencv": "bilinear between the nearest pixels, on float32",
    "bilinear": "Pillow's bilinear, on whole numbers",
    "bicubic": "Pillow's bicubic, on whole numbers",
}


class EncoderFunction(NamedTuple):
    """An encoder as a function.

    inputs: their names, and their shapes for one image or caption.
    arrays: its parameters and running statistics.
    run: called with `arrays` and the inputs; gives the embeddings, float32 [batch, D].
    """

    inputs: Shapes
    arrays: dict[str, Any]
    run: Callable[..., Array]


def write_exported(
    config: Config, workdir: AnyPath, graphdef: nnx.GraphDef, model: dict[str, Any]
) -> AnyPath:
    """Writes W/exported/: both encoders, preprocessing.json, token ids and README.txt.

    `model`: its arrays, on the host.

    Raises:
        InputError: no vocabulary, a model for images of any aspect, or the folder
            cannot be written.
    """
    if keeps_aspect(config.image):
        raise InputError(
            "config.image.vit.max_patches: a model for images of any aspect (NaFlex) "
            "is not exported"
        )
    tokenizer = caption_tokenizer(config)
    about = preprocessing(config)
    target = workdir / "exported"
    with whole_folder(target, replace=True) as folder:
        if config.export.format == "onnx":
            for name, encoder in encoder_functions(config, graphdef, model).items():
                with onnx_file(encoder, f"{name}_tower") as file:
                    for part in file.parent.iterdir():
                        write_atomically(folder / part.name, part.read_bytes())
        else:
            for name, made in export_encoders(config, graphdef, model).items():
                arrays, program = made
                write_atomically(folder / f"{name}_tower.stablehlo", program)
                write_safetensors(folder / f"{name}_tower.safetensors", arrays)
        texts = {
            "preprocessing.json": json.dumps(about, indent=1) + "\n",
            about["text"]["tokenizer"]: tokenizer.as_json(),
            "README.txt": _readme(config),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
    return target


def encoder_functions(
    config: Config, graphdef: nnx.GraphDef, model: dict[str, Any]
) -> dict[str, EncoderFunction]:
    """Both encoders, {"image", "text"}.

    Captions are padded to one length, the longest that the model takes: a pooling that
    sorts needs the size of its sets.
    """
    vse = merge_model(graphdef, model)
    captions = caption_shapes(1, padded_lengths(config)[-1])
    captions = {name: captions[name] for name in ("token_ids", "token_lengths")}
    images = image_shapes(config.image, 1)
    return {
        "image": _function(vse.image, images, vse.dims, vse.normalize_images),
        "text": _function(vse.text, captions, vse.dims, vse.normalize_captions),
    }


def _function(
    encoder: nnx.Module, inputs: Shapes, dims: int | None, normalize: bool
) -> EncoderFunction:
    graphdef, tree = split_model(encoder)

    def run(arrays: dict[str, Any], *values: Array) -> Array:
        held = merge(tree, arrays)
        module = nnx.merge(graphdef, held["params"], held["batch_stats"])
        pooled = module(dict(zip(inputs, values, strict=True)))
        return prefix(pooled, dims, normalize)

    return EncoderFunction(inputs, flatten(tree), run)


def export_encoders(
    config: Config, graphdef: nnx.GraphDef, model: dict[str, Any]
) -> dict[str, tuple[dict[str, np.ndarray], bytes]]:
    """Both encoders, {"image", "text"}, as StableHLO for all of `PLATFORMS`.

    Each is (arrays, program): what `jax.export.deserialize` makes of the program is
    called with the arrays, {path: float32}, and a batch of inputs of any size, and
    gives the embeddings, float32 [batch, D].

    What the platforms compute in different ways (ops/sorted_pool.py) is in the program
    for each of them.
    """
    (batch,) = export.symbolic_shape("batch")
    found = {}
    for name, encoder in encoder_functions(config, graphdef, model).items():
        arrays = {path: np.asarray(x) for path, x in encoder.arrays.items()}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        values = [
            jax.ShapeDtypeStruct((batch, *shape[1:]), dtype)
            for shape, dtype in encoder.inputs.values()
        ]
        # One precision for all platforms: that of 'auto' on accelerators, since on
        # CPUs every one of them is float32.
        with jax.default_matmul_precision(matmul_precision(config, "cuda")):
            program = export.export(jax.jit(encoder.run), platforms=PLATFORMS)
            found[name] = arrays, bytes(program(shapes, *values).serialize())
    return found


@contextlib.contextmanager
def onnx_file(encoder: EncoderFunction, name: str) -> Iterator[Path]:
    """An encoder as NAME.onnx, alone in a folder with its weights, NAME.onnx.data.

    The folder is removed when the block ends. The weights are by themselves since a
    file of ONNX's own format can have no more than 2 GB.

    Raises:
        InputError: as `onnx_program`.
    """
    # An optional package, which takes a second to import.
    from vse_jax.checkpoints.onnx_program import onnx_program, save  # noqa: PLC0415

    run = functools.partial(encoder.run, encoder.arrays)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.onnx")
        save(onnx_program(run, encoder.inputs, "embeddings"), file)
        yield file


def preprocessing(config: Config) -> dict[str, Any]:
    """The contents of preprocessing.json: what is done to images and captions."""
    image: dict[str, Any]
    if takes_regions(config.image):
        image = {
            "inputs": ["regions", "region_lengths"],
            "regions": config.image.max_regions,
            "features": config.image.feature_dim,
        }
    else:
        scale, shift = scale_and_shift(config.image.pixels)
        image = {
            "inputs": ["images"],
            "size": config.image.size,
            "background": "white",
            "resized": _RESIZED[config.image.resample],
            "channels": [2, 1, 0] if config.image.pixels == "detector" else [0, 1, 2],
            "scale": scale.tolist(),
            "shift": shift.tolist(),
        }
    words = config.text.kind == "bigru"
    text: dict[str, Any] = {
        "inputs": ["token_ids", "token_lengths"],
        "length": padded_lengths(config)[-1],
        "tokenizer": "words.json" if words else "tokenizer.json",
    }
    if words:
        text |= {"lower_case": True, "split_by": "nltk.word_tokenize"}
        text |= {"first": "<start>", "last": "<end>", "unknown": "<unk>"}
    return {"format_version": 1, "image": image, "text": text}


def _readme(config: Config) -> str:
    """README.txt; each section of its template begins with the model that it is for."""
    regions = takes_regions(config.image)
    kinds = {"all", "words" if config.text.kind == "bigru" else "tokens"}
    kinds.add(config.export.format)
    kinds |= {"regions"} if regions else {"pixels", config.image.resample}
    template = (TEMPLATES / "exported_readme.txt").read_text(encoding="utf-8")
    start, *sections = re.split(r"^== ", template, flags=re.MULTILINE)
    split = (section.partition("\n") for section in sections)
    return start + "".join(text for kind, _, text in split if kind in kinds)
