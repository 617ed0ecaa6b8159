"""Embeddings of a split in the order of an evaluation set that has ids of its own.

A split's lists may be in any order: what belongs together is found by image id, never
by its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vse_jax.base.errors import InputError
from vse_jax.data.dataset import caption_offsets


class Joined(NamedTuple):
    """The embeddings of the images that split and set share, in the set's order.

    images: [N, D]. captions: [C, D]. caption_images: [C], the image row of each
    caption. image_rows, caption_rows: id → row of these.
    """

    images: np.ndarray
    captions: np.ndarray
    caption_images: np.ndarray
    image_rows: dict[str, int]
    caption_rows: dict[str, int]


def plain_id(given: Any) -> str:
    """The one spelling of an id: '00042', '42' and the number 42 are the same id."""
    text = str(given).strip()
    return str(int(text)) if text.isascii() and text.isdigit() else text


def image_rows(image_ids: Sequence[str], source: str) -> dict[str, int]:
    """{plain id: row} of a split's images.

    Raises:
        InputError: two ids are the same; the line begins with `source`.
    """
    rows: dict[str, int] = {}
    for row, given in enumerate(image_ids):
        first = rows.setdefault(plain_id(given), row)
        if first != row:
            raise InputError(
                f"{source}: the split's image ids {image_ids[first]!r} and {given!r} "
                "are the same number"
            )
    return rows


def join(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    image_ids: Sequence[str],
    set_captions: Mapping[str, Sequence[str]],
    source: str,
) -> Joined:
    """Joins a split with an evaluation set by image id.

    A split's captions have no ids. The k-th caption of an image is the k-th that the
    set lists for it, which holds for COCO's published lists; how many there are is
    checked.

    Args:
        images, captions: embeddings of the split, image by image.
        captions_per_image: of every image, or of each.
        image_ids: of the split.
        set_captions: {image id: its caption ids} of the set, as `plain_id` spells them.
        source: names the set in errors.

    Raises:
        InputError: the set lacks an image of the split, or has another number of
            captions for it; two ids of the split are the same.
    """
    rows = image_rows(image_ids, source)
    missing = [image_ids[row] for item, row in rows.items() if item not in set_captions]
    if missing:
        raise InputError(
            f"{source}: {len(missing):,} of the split's {len(rows):,} image ids are "
            f"missing, such as {missing[0]!r}"
        )
    counts = np.broadcast_to(captions_per_image, len(images))
    shared = {item: rows[item] for item in set_captions if item in rows}
    for item, row in shared.items():
        if (listed := len(set_captions[item])) != counts[row]:
            raise InputError(
                f"{source}: image id {image_ids[row]!r} has {listed} captions, but "
                f"{counts[row]} in the split"
                + (
                    f"; --config.data.captions_per_image={listed} takes its first ones"
                    if listed < counts[row]
                    else ""
                )
            )
    order = np.fromiter(shared.values(), np.int64, len(shared))
    caption_ids = [caption for item in shared for caption in set_captions[item]]
    starts = caption_offsets(counts)[order]
    caption_order = [
        row
        for start, count in zip(starts, counts[order], strict=True)
        for row in range(start, start + count)
    ]
    return Joined(
        images[order],
        captions[caption_order],
        np.repeat(np.arange(len(order)), counts[order]),
        {item: row for row, item in enumerate(shared)},
        {caption: row for row, caption in enumerate(caption_ids)},
    )
