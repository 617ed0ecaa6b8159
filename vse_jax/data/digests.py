"""What a run's data are, in a few digests that its checkpoints keep.

A run that goes on compares them: an order of batches, a best rsum and the ids of a
vocabulary mean nothing on other data. Equal data have equal digests wherever they lie
and in whichever config.data.format.
"""

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_bytes
from vse_jax.config import Config, takes_regions
from vse_jax.data.dataset import Split
from vse_jax.data.images import ImageBytes
from vse_jax.data.vocabulary import vocabulary_content

# Image files, or sets of features, of a split whose content is looked at: to read all
# would take as long as an epoch.
_SAMPLES = 16

_NAMES = {
    "ids": "image ids",
    "captions": "captions",
    "offsets": "captions of the images",
    "files": "names of image files",
    "shape": "shape of features",
    "content": "images or features",
}

Digests = dict[str, Any]  # JSON-able


def data_digests(config: Config, splits: Iterable[Split]) -> Digests:
    """{"splits": {name: numbers and digests}, "vocabulary": digest}.

    Raises:
        InputError: no vocabulary, or an image file that cannot be read.
    """
    return {
        "splits": {split.name: _of_split(config, split) for split in splits},
        "vocabulary": vocabulary_digest(config),
    }


def vocabulary_digest(config: Config) -> str:
    """Of the files that a model's folder keeps of its vocabulary; InputError: none."""
    files = sorted(vocabulary_content(config).items())
    return _digest(part for name, content in files for part in (name, content))


def changes(before: Digests, now: Digests) -> list[str]:
    """What is not as it was, for people; a split that only one has is not compared."""
    found = []
    for name, old in before["splits"].items():
        new = now["splits"].get(name, old)
        counts = [(x["images"], x["texts"]) for x in (old, new)]
        # With other ids, their images are others anyway.
        fields = _NAMES if old["ids"] == new["ids"] else ("ids", "captions", "shape")
        differing = [
            _NAMES[field]
            for field in fields
            if old[field] != new[field] and None not in (old[field], new[field])
        ]
        if counts[0] != counts[1]:
            found.append(
                f"{name!r} had {counts[0][0]:,} images and {counts[0][1]:,} captions, "
                f"now {counts[1][0]:,} and {counts[1][1]:,}"
            )
        elif differing:
            found.append(f"{name!r} has other {' and '.join(differing)}")
    if before["vocabulary"] != now["vocabulary"]:
        found.append("the vocabulary is another one")
    return found


def _of_split(config: Config, split: Split) -> dict[str, Any]:
    files = shape = None
    if split.regions is not None:
        shape = list(split.regions.shape[1:])
    elif isinstance(split.images, list):
        root = os.fspath(split.root)
        files = _digest(os.fspath(p).removeprefix(root) for p in split.images)

    def content(image: int) -> bytes:
        if takes_regions(config.image):
            assert split.regions is not None
            return split.regions[image].astype("<f4").tobytes()
        assert split.images is not None
        try:
            found = split.images[image]
            return found.data if isinstance(found, ImageBytes) else read_bytes(found)
        except InputError:
            if config.data.on_bad_image != "skip":
                raise
            return b""  # as --mode=export writes it

    count = len(split.image_ids)
    sampled = np.linspace(0, count - 1, min(count, _SAMPLES)).astype(int).tolist()
    return {
        "images": count,
        "texts": len(split.captions),
        "ids": split.image_ids.sha256(),
        "captions": split.captions.sha256(),
        "offsets": _digest([split.offsets.astype("<i8").tobytes()]),
        "most_texts": int(split.captions_per_image.max()),  # of an image
        "files": files,  # None: the format does not tell
        "shape": shape,
        "content": _digest(map(content, sampled)),
    }


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
