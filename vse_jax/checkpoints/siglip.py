"""SigLIP and SigLIP2, of fixed resolution or NaFlex, as Hugging Face folders hold them.

config.json, the weights, tokenizer.json and processor_config.json (of today's
transformers) or preprocessor_config.json are read; sentencepiece is not needed.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_object, resolve_folder
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.torch import keys, torch_file
from vse_jax.config import (
    Config,
    encoder_config,
    flat_fields,
    keeps_aspect,
    nested,
    typed,
)
from vse_jax.data.tokenizers import read_siglip_tokenizer
from vse_jax.data.vocabulary import find_vocabulary

# Our fields: the names in config.json, with what a field that is absent means there.
_SIZES: dict[str, tuple[str, str, int]] = {
    "image.size": ("vision", "image_size", 224),
    "image.vit.patch": ("vision", "patch_size", 16),
    "image.vit.hidden": ("vision", "hidden_size", 768),
    "image.vit.layers": ("vision", "num_hidden_layers", 12),
    "image.vit.heads": ("vision", "num_attention_heads", 12),
    "image.vit.ffn": ("vision", "intermediate_size", 3072),
    "text.vocab_size": ("text", "vocab_size", 32000),
    "text.hidden": ("text", "hidden_size", 768),
    "text.layers": ("text", "num_hidden_layers", 12),
    "text.heads": ("text", "num_attention_heads", 12),
    "text.ffn": ("text", "intermediate_size", 3072),
    "text.max_positions": ("text", "max_position_embeddings", 64),
}
# What models/siglip.py builds; absent: the same.
_KIND = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_VISION_KIND = _KIND | {"num_channels": 3, "vision_use_head": True}
# What data/images.py does with pixels = 'siglip'; absent: the same.
_PIXELS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_MAX_PATCHES = 256  # of NaFlex's processor, unless it says otherwise

# The model as it was published: what a folder's files do not say.
ZERO_SHOT: dict[str, Any] = {
    "image.kind": "vit",
    "image.pool": "map",
    "text.kind": "siglip",
    "text.pool": "last",
    "loss.name": "sigmoid",
}

# Our parts: their tensors.
_PARTS = {
    "image/vit": r"vision_model\.(embeddings|encoder|post_layernorm)\..*",
    "image/gpool": r"vision_model\.head\..*",
    "text/siglip": r"text_model\.(embeddings|encoder|final_layer_norm)\..*",
    "text/linear": r"text_model\.head\..*",
    "loss": r"logit_(scale|bias)",
}
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_PROBE = "vision_model.head.probe"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_PROJECTION = "vision_model.head.attention.in_proj_"


def siglip_sizes(folder: Path) -> dict[str, Any]:
    """The config's fields that a folder's config.json decides, {"image.size": …}.

    Raises:
        InputError: it is missing, broken, or not that of a plain SigLIP; all that is
            different is named.
    """
    file = folder / "config.json"
    config = read_object(file)
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip2"):
        raise InputError(
            f"{file}: model_type is {kind!r}, not 'siglip' (which SigLIP2 of fixed "
            "resolution has, too) or 'siglip2' (NaFlex)"
        )
    parts = {name: config.get(f"{name}_config") or {} for name in ("vision", "text")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InputError(f"{file}: {name}_config is {part!r}, not an object")
    wrong = _differences(parts["vision"], _VISION_KIND, "vision_config.")
    wrong += _differences(parts["text"], _KIND, "text_config.")
    if wrong:
        raise InputError(f"{file}: {'; '.join(wrong)}")
    fields = {f: parts[part].get(*name) for f, (part, *name) in _SIZES.items()}
    fields["image.vit.max_patches"] = None
    if kind == "siglip2":
        count = parts["vision"].get("num_patches", 256)
        if not isinstance(count, int) or count < 1 or math.isqrt(count) ** 2 != count:
            raise InputError(
                f"{file}: vision_config.num_patches is {count!r}, no square number"
            )
        fields["image.vit.max_patches"] = _MAX_PATCHES
        fields["image.vit.grid"] = math.isqrt(count)
        fields["image.size"] = math.isqrt(count) * fields["image.vit.patch"]
    fields["embed_dim"] = parts["text"].get("projection_size") or fields["text.hidden"]
    if fields["embed_dim"] != fields["image.vit.hidden"]:
        raise InputError(
            f"{file}: vision_config.hidden_size is {fields['image.vit.hidden']}, but "
            f"text_config.projection_size is {fields['embed_dim']}"
        )
    return fields


def siglip_pixels(folder: Path) -> dict[str, Any]:
    """The fields that processor_config.json or preprocessor_config.json decides.

    Raises:
        InputError: it prepares images in a way that this package does not.
    """
    file = folder / "processor_config.json"
    config = read_object(file).get("image_processor") if file.is_file() else None
    if config is None:  # as before transformers 5
        file = folder / "preprocessor_config.json"
        config = read_object(file)
    if not isinstance(config, dict):
        raise InputError(f"{file}: image_processor is {config!r}, not an object")
    wrong = _differences(config, _PIXELS, "")
    resample = config.get("resample", 3)
    if resample not in _RESAMPLE:
        wrong.append(f"resample is {resample!r}, not 2 (bilinear) or 3 (bicubic)")
    if wrong:
        raise InputError(f"{file}: {'; '.join(wrong)}")
    fields = {"image.pixels": "siglip", "image.resample": _RESAMPLE[resample]}
    if "max_num_patches" in config:  # NaFlex
        fields["image.vit.max_patches"] = config["max_num_patches"]
    return fields


def siglip_config(folder: Path) -> Config:
    """The config of the model that a SigLIP's Hugging Face folder holds.

    Raises:
        InputError: it is another model than models/ can build; names what differs.
    """
    found = siglip_sizes(folder) | siglip_pixels(folder) | ZERO_SHOT
    found |= {"image.weights": str(folder), "text.weights": str(folder)}
    found["data.max_tokens"] = found["text.max_positions"]
    return resolve_siglip(_with_sizes(Config(), found, folder))


def resolve_siglip(config: Config) -> Config:
    """The config with the sizes of the SigLIP folders that it names.

    Not the images' size, nor NaFlex's number of patches if it has one: position
    embeddings are resized. A folder that is not there is no error: a run that goes on,
    or is evaluated, has its sizes.

    Raises:
        InputError: a folder of another architecture, or without its tokenizer.
    """
    for name, kind in (("image", "vit"), ("text", "siglip")):
        encoder = encoder_config(config, name)
        if encoder.kind != kind or encoder.weights is None:
            continue
        try:
            folder = resolve_folder(encoder.weights)
        except InputError:
            continue
        sizes = siglip_sizes(folder)
        found = {field: n for field, n in sizes.items() if field.startswith(name)}
        found.pop("image.size", None)
        if name == "image":
            found |= siglip_pixels(folder)
            if keeps_aspect(config.image) and found["image.vit.max_patches"]:
                del found["image.vit.max_patches"]
        else:
            pieces = read_siglip_tokenizer(find_vocabulary(config))
            found["text.pad_id"] = pieces.pad
        if encoder.pool == ZERO_SHOT[f"{name}.pool"]:
            found["embed_dim"] = sizes["embed_dim"]
        config = _with_sizes(config, found, folder)
    return config


def _with_sizes(config: Config, found: dict[str, Any], folder: Path) -> Config:
    try:
        return typed(nested({**flat_fields(config), **found}))
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error


def is_zero_shot(config: Config) -> bool:
    """Whether a config is a published SigLIP's, from its folder."""
    weights = config.image.weights
    is_published = weights is not None and weights == config.text.weights
    return is_published and not _other_than_published(config)


def check_zero_shot(config: Config, folder: AnyPath) -> None:
    """Raises InputError unless a config is that of the published SigLIP in a folder."""
    if differing := _other_than_published(config):
        raise InputError(
            f"{folder}: a published SigLIP, but the config is another model's: "
            + ", ".join(differing)
        )


def _other_than_published(config: Config) -> list[str]:
    """A text for each field in which a model is of another kind than the published."""
    fields = flat_fields(config)
    return [
        f"config.{field} is {fields[field]!r}, not {value!r}"
        for field, value in ZERO_SHOT.items()
        if fields[field] != value
    ]


def load_siglip(folder: Path, template: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a VSE with SigLIP's encoders, or of some of its parts.

    Position embeddings are resized if the template's images have another size. It is a
    nested dict of (abstract) parameters: image/vit, image/gpool (the MAP head),
    text/siglip, text/linear (the head), loss (temperature and bias).

    Raises:
        InputError: the file cannot be read or does not fit the template.
    """
    source, stored = torch_file.read_folder(folder)
    _, _, stored = keys.unwrapped(stored, [keys.SIGLIP], source)
    tensors = _our_layout(stored)
    shapes = {path: leaf.shape for path, leaf in flatten(template).items()}
    unused = [
        pattern
        for part, pattern in _PARTS.items()
        if not any(path.startswith(f"{part}/") for path in shapes)
    ]
    places = shapes.get("image/vit/positions")
    if places and _POSITIONS in tensors:
        tensors[_POSITIONS] = resize_positions(tensors[_POSITIONS], places[0])
    table = keys.SIGLIP + keys.Table({}, tuple(unused))
    return keys.from_torch(tensors, table, template, source)


def resize_positions(
    positions: Float[np.ndarray, "n h"], count: int
) -> Float[np.ndarray, "{count} h"]:
    """Position embeddings of another square grid, bilinear and antialiased.

    As big_vision resizes them. What is no square stays as it is.
    """
    old, new = math.isqrt(len(positions)), math.isqrt(count)
    if old == new or old * old != len(positions) or new * new != count:
        return positions
    grid = positions.astype(np.float32).reshape(old, old, -1)
    resized = jax.image.resize(grid, (new, new, grid.shape[2]), "bilinear")
    return np.asarray(resized).reshape(count, -1)


def _our_layout(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The MAP head's projections one by one; its probe and the scalars without 1s."""
    found = {}
    for key, tensor in tensors.items():
        if key.startswith(_PROJECTION) and len(tensor) % 3 == 0:
            for name, part in zip("qkv", np.split(tensor, 3), strict=True):
                found[key.replace("in_proj_", f"{name}_proj.")] = part
        elif key.startswith("logit_") and tensor.size == 1:
            found[key] = tensor.reshape(())
        elif key == _PROBE and tensor.shape[:2] == (1, 1):
            found[key] = tensor[0, 0]
        elif key == _PATCHES and tensor.ndim == 2:  # NaFlex's: of patches, row by row
            side = math.isqrt(tensor.shape[1] // 3)
            if 3 * side * side == tensor.shape[1]:
                tensor = tensor.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
            found[key] = tensor
        else:
            found[key] = tensor
    return found


def _differences(
    config: dict[str, Any], expected: dict[str, Any], name: str
) -> list[str]:
    found = []
    for field, value in expected.items():
        there = config.get(field, value)
        floats = isinstance(value, float) and isinstance(there, float)
        if not (math.isclose(there, value, rel_tol=1e-6) if floats else there == value):
            found.append(f"{name}{field} is {there!r}, not {value!r}")
    return found
