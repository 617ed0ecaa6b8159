"""A data root and a config so small that a real training run takes seconds."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from configs import common

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "pink")
SHAPES = ("circle", "square", "cross", "bar")
PLACES = ("left", "right", "top", "bottom", "middle")
SPLITS = {"train": 96, "dev": 32, "test": 32}  # of 8 × 4 × 5 pictures
WORDS = ("a", "the", "at", "in", "drawn", "picture", "of", "is", ".", ",")
SIZE = 32  # px


def draw(colour: str, shape: str, place: str) -> Image.Image:
    """A white picture with one coloured shape."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    pen = ImageDraw.Draw(image)
    x, y = {
        "left": (8, 16),
        "right": (24, 16),
        "top": (16, 8),
        "bottom": (16, 24),
        "middle": (16, 16),
    }[place]
    box = (x - 7, y - 7, x + 7, y + 7)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "cross":
        pen.line(box, fill=colour, width=3)
        pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=3)
    else:
        pen.rectangle((x - 7, y - 2, x + 7, y + 2), fill=colour)
    return image


def captions(colour: str, shape: str, place: str) -> list[str]:
    return [
        f"a {colour} {shape} at the {place}",
        f"{place}, {colour} {shape}.",
        f"the picture of a {shape}, {colour}, drawn at the {place}",
        f"in the {place} is a {colour} {shape}",
        f"a {shape} is {colour}",
    ]


def write_root(root: Path) -> Path:
    """Writes the published layout below `root`, and a vocabulary beside it."""
    (root / "precomp").mkdir(parents=True)
    (root / "images").mkdir()
    pictures = list(itertools.product(COLOURS, SHAPES, PLACES))
    order = np.random.default_rng(0).permutation(len(pictures))
    names = iter(order)
    mapping = []
    for split, count in SPLITS.items():
        ids, lines = [], []
        for index in itertools.islice(names, count):
            picture = pictures[index]
            draw(*picture).save(root / "images" / f"{index}.png")
            mapping.append(f'"{index}": "{index}.png"')
            ids.append(f"{index}\n")
            lines += [f"{caption}\n" for caption in captions(*picture)]
        (root / "precomp" / f"{split}_ids.txt").write_text("".join(ids))
        (root / "precomp" / f"{split}_caps.txt").write_text("".join(lines))
    (root / "id_mapping.json").write_text("{" + ",\n".join(mapping) + "}")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [*COLOURS, *SHAPES, *PLACES]
    (root.parent / "vocab").mkdir(exist_ok=True)
    (root.parent / "vocab" / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return root


def make_uneven(root: Path) -> None:
    """Leaves image i of each split its first 1 + i % 5 captions."""
    for split in SPLITS:
        ids_file, captions_file = (
            root / "precomp" / f"{split}_{name}.txt" for name in ("ids", "caps")
        )
        lines = captions_file.read_text().splitlines(keepends=True)
        kept = [
            (image, lines[5 * i + k])
            for i, image in enumerate(ids_file.read_text().split())
            for k in range(1 + i % 5)
        ]
        ids_file.write_text("".join(f"{image}\n" for image, _ in kept))
        captions_file.write_text("".join(caption for _, caption in kept))


def quick(config):
    """The config without what takes long to compile: for tests of all but the model."""
    config.image.pool = config.text.pool = "avg"
    config.image.drop = config.text.dropout = 0.0
    return config


def get_config(root: str = "data/tiny"):
    """The grid + BERT model of the published recipe at toy size, all of it trained."""
    c = common.base()
    c.batch_size = 16
    c.num_epochs = 2
    c.log_every = 1
    c.embed_dim = 32
    c.data.name = "tiny"
    c.data.root = root
    c.data.max_tokens = 16
    c.data.token_buckets = (16,)
    c.image.size = SIZE
    c.image.backbone.block = "basic"
    c.image.backbone.stem = "patch"
    c.image.backbone.layers = (1, 1)
    c.image.backbone.width = 16
    c.image.backbone.batch_norm = "train"
    c.text.vocab_size = 32
    c.text.hidden = 32
    c.text.layers = 1
    c.text.heads = 2
    c.text.ffn = 64
    c.text.max_positions = 32
    c.loss.ramp_epoch = -1
    c.optimizer.learning_rate = 2e-3
    c.optimizer.lr_update = 10
    c.optimizer.rules = common.grid_rules(embedding_warmup=0, backbone=1.0, bert=1.0)
    c.eval.batch_size = 32
    c.debug = True
    return c
