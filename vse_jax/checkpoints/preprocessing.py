"""What an exported model does to pictures and captions, as data and as a program."""

import textwrap
from typing import Any

from vse_jax.config import Config, takes_regions
from vse_jax.data.images import scale_and_shift
from vse_jax.data.tokenizers import padded_lengths

_RESIZED = {
    "plain": "bilinear between the nearest pixels, on float32",
    "bilinear": "Pillow's bilinear, on whole numbers",
    "bicubic": "Pillow's bicubic, on whole numbers",
}


def described(config: Config) -> dict[str, Any]:
    """The contents of preprocessing.json."""
    return {"format_version": 1, "image": _image(config), "text": _text(config)}


def tokenizer_name(config: Config) -> str:
    """The file that holds what makes token ids."""
    return "words.json" if config.text.kind == "bigru" else "tokenizer.json"


def _image(config: Config) -> dict[str, Any]:
    image = config.image
    if takes_regions(image):
        return {
            "inputs": ["regions", "region_lengths"],
            "regions": image.max_regions,
            "features": image.feature_dim,
        }
    scale, shift = scale_and_shift(image.pixels)
    return {
        "inputs": ["images"],
        "size": image.size,
        "background": "white",
        "resized": _RESIZED[image.resample],
        "channels": [2, 1, 0] if image.pixels == "detector" else [0, 1, 2],
        "scale": scale.tolist(),
        "shift": shift.tolist(),
    }


def _text(config: Config) -> dict[str, Any]:
    about = {
        "inputs": ["token_ids", "token_lengths"],
        "length": padded_lengths(config)[-1],
        "tokenizer": tokenizer_name(config),
    }
    if config.text.kind == "bigru":
        specials = {"first": "<start>", "last": "<end>", "unknown": "<unk>"}
        about |= {"lower_case": True, "split_by": "nltk.word_tokenize"} | specials
    return about


def readme(config: Config) -> str:
    """README.txt: what the files are, and a program that reads them."""
    words = config.text.kind == "bigru"
    captions = (_NLTK, _WORDS) if words else (_TOKENIZERS, _TOKENS)
    pictures = ("", "", _REGIONS)
    if not takes_regions(config.image):
        resized = _FILTERED.format(filter=config.image.resample.upper())
        if config.image.resample == "plain":
            resized = _PLAIN
        pictures = (_PIL, _OPENED + resized, _PIXELS)
    program = [_NUMPY, pictures[0], captions[0], _EMBED, pictures[1]]
    program += [captions[1], pictures[2]]
    return _TEXT + textwrap.indent("".join(program), "    ")


_TEXT = """\
An image-text retrieval model of vse_jax as programs that run without that package:

image_tower.stablehlo, text_tower.stablehlo       for CPUs, NVIDIA GPUs and TPUs
image_tower.safetensors, text_tower.safetensors   what they are called with first
preprocessing.json                                how their other inputs are made
tokenizer.json or words.json                      captions to token ids

Inner products of their results are similarities. A batch may have any size. To run in
this folder, with the packages jax and flatbuffers and those that are imported here;
`captions` and `files` (of a region model `regions` and `region_lengths`) are given:

"""
# Where a line of the program is too long for this file, a backslash goes on with it.
_NUMPY = """\
import json, jax.export, numpy as np
from safetensors.numpy import load_file
"""
_PIL = "from PIL import Image, ImageOps\n"
_TOKENIZERS = "from tokenizers import Tokenizer\n"
_NLTK = "import nltk, re\n"
_EMBED = """\
def embed(tower, *inputs):
    program = jax.export.deserialize(\
bytearray(open(f"{tower}_tower.stablehlo", "rb").read()))
    return np.asarray(program.call(load_file(f"{tower}_tower.safetensors"), *inputs))
"""
_OPENED = """\
def pixels(file, about=json.load(open("preprocessing.json"))["image"]):
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
"""
_SCALED = """\
    return np.stack(planes, -1)[..., about["channels"]] * \
np.float32(about["scale"]) + np.float32(about["shift"])
"""
# Pillow's EXTENT looks at the nearest four pixels, as OpenCV's bilinear resize does.
_PLAIN = f"""\
    planes = [plane.convert("F").transform((about["size"],) * 2, \
Image.Transform.EXTENT, (0, 0, *image.size), 2) for plane in image.split()]
{_SCALED}"""
_FILTERED = f"""\
    image = image.convert("RGB").resize((about["size"],) * 2, \
Image.Resampling.{{filter}})
    planes = [np.float32(plane) for plane in image.split()]
{_SCALED}"""
_TOKENS = """\
tokens = Tokenizer.from_file("tokenizer.json").encode_batch(captions)
sentences = embed("text", np.int32([t.ids for t in tokens]), \
np.int32([sum(t.attention_mask) for t in tokens]))
"""
_WORDS = """\
text, ids = (json.load(open(f)) for f in ("preprocessing.json", "words.json"))
tokens = np.zeros((len(captions), text["text"]["length"]), np.int32)
lengths = np.zeros(len(captions), np.int32)
for row, caption in enumerate(captions):
    parts = re.split(r"(?<=[.?!])\\s+", caption.lower())
    words = [w for part in parts for w in nltk.word_tokenize(part, preserve_line=True)]
    words = [ids.get(w, ids["<unk>"]) for w in words][: tokens.shape[1] - 2]
    lengths[row] = len(words) + 2
    tokens[row, : lengths[row]] = [ids["<start>"], *words, ids["<end>"]]
sentences = embed("text", tokens, lengths)
"""
_PIXELS = """\
pictures = embed("image", np.stack([pixels(file) for file in files]))
"""
_REGIONS = """\
pictures = embed("image", regions, region_lengths)  # float32 [n, most, features], int32
"""
