"""Captions as JSON: Karpathy's splits of COCO and Flickr30K, and COCO's own files.

    dataset_coco.json, dataset_flickr30k.json
        {"images": [{"filename", "split", "sentences": [{"raw"}, …], "imgid",
                     COCO only: "filepath", "cocoid"}, …]}
    captions_train2014.json, captions_val2017.json, …
        {"images": [{"id", "file_name", "coco_url"}, …],
         "annotations": [{"image_id", "caption"}, …]}

Image ids are those of the published lists, so that CxC and ECCV Caption know them:
COCO's, and for Flickr30K Karpathy's number of the image.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_text
from vse_jax.data.prepare.entry import Entry, check_relative

T = TypeVar("T")

# The published COCO lists have `restval` in train, and call all of Karpathy's 5,000
# test images `testall`.
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


def read_caption_json(path: Path) -> Iterator[Entry]:
    """The images of one of these files.

    Raises:
        InputError: not JSON, JSON of another kind (says what it looks like), or an
            image that lacks a field (named with its number, from 1).
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and images and isinstance(images[0], dict):
        if "sentences" in images[0]:
            return _karpathy(path, images)
        notes = content.get("annotations")
        if isinstance(notes, list) and notes and "caption" in notes[0]:
            return _coco(path, images, notes)
    raise InputError(
        f"{path}: looks like {_description(content)}; wanted are Karpathy's splits "
        "(images with sentences) or COCO's captions (images, and annotations with "
        "captions)"
    )


def _description(content: Any) -> str:
    """What a JSON file of another kind looks like, in a few words."""
    if isinstance(content, list):
        return f"a JSON list of {len(content):,}"
    if not isinstance(content, dict):
        return f"a JSON {type(content).__name__}"
    notes = content.get("annotations")
    if isinstance(notes, list) and notes and isinstance(notes[0], dict):
        if {"bbox", "segmentation"} & notes[0].keys():
            return "COCO's annotations of objects"
        return f"annotations with {', '.join(sorted(notes[0])[:5])}"
    if "images" in content:
        return "a list of images without captions"
    if content and all(isinstance(value, str) for value in content.values()):
        return "a mapping of names, such as id_mapping.json"
    return f"a JSON object with {', '.join(map(repr, list(content)[:5])) or 'nothing'}"


def _karpathy(path: Path, images: list[Any]) -> Iterator[Entry]:
    is_coco = "cocoid" in images[0]
    for number, image in enumerate(images, 1):
        where = f"{path}, image {number}"
        given = _field(image, "split", str, where)
        if given not in _KARPATHY_SPLITS:
            known = ", ".join(_KARPATHY_SPLITS)
            raise InputError(f"{where}: split {given!r} is none of {known}")
        split = "testall" if is_coco and given == "test" else _KARPATHY_SPLITS[given]
        name = _field(image, "filename", str, where)
        if "filepath" in image:
            name = f"{_field(image, 'filepath', str, where)}/{name}"
        sentences = _field(image, "sentences", list, where)
        yield Entry(
            where=where,
            image=check_relative(name, where),
            split=split,
            captions=[_field(sentence, "raw", str, where) for sentence in sentences],
            image_id=str(_field(image, "cocoid" if is_coco else "imgid", int, where)),
        )


def _coco(path: Path, images: list[Any], notes: list[Any]) -> Iterator[Entry]:
    captions: dict[int, list[str]] = {}
    for number, note in enumerate(notes, 1):
        where = f"{path}, annotation {number}"
        caption = _field(note, "caption", str, where)
        captions.setdefault(_field(note, "image_id", int, where), []).append(caption)
    for number, image in enumerate(images, 1):
        where = f"{path}, image {number}"
        name = _field(image, "file_name", str, where)
        # The folder that COCO's archives have it in, such as val2014.
        folder = PurePosixPath(str(image.get("coco_url"))).parent.name
        if "coco_url" in image and "/" not in name:
            name = f"{folder}/{name}"
        image_id = _field(image, "id", int, where)
        if image_id not in captions:
            raise InputError(f"{where}: no annotation has a caption of id {image_id}")
        yield Entry(
            where=where,
            image=check_relative(name, where),
            split="",
            captions=captions.pop(image_id),
            image_id=str(image_id),
        )
    if captions:
        raise InputError(
            f"{path}: {len(captions):,} ids of annotations are of no image, such as "
            f"{next(iter(captions))}"
        )


def _field(item: Any, name: str, kind: type[T], where: str) -> T:
    """A field of a JSON object; InputError: it is not there, or of another kind."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        raise InputError(f"{where}: no {name!r} that is a {kind.__name__}")
    return value
