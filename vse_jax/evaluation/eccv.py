"""ECCV Caption: retrieval with the positives that COCO's 5K test set leaves out.

Chun et al., ECCV 2022 (Plausible Match: Chun et al., CVPR 2021). The package
`eccv_caption` holds the annotations and COCO's caption ids; the metrics here equal its
own, in %, and need no ranked lists of ids.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vse_jax.base.errors import InputError
from vse_jax.base.extras import require_extra
from vse_jax.base.files import read_object, resolve_folder
from vse_jax.evaluation.joining import join
from vse_jax.evaluation.retrieval import check_finite, positive_ranks

_DIRECTIONS = {"i2t": "image_to_caption", "t2i": "caption_to_image"}


def eccv_metrics(
    images: Float[np.ndarray, "images dim"],
    captions: Float[np.ndarray, "captions dim"],
    captions_per_image: int | Int[np.ndarray, " images"],
    image_ids: Sequence[str],
    plausible: Path | None = None,
    annotations: Path | None = None,
) -> dict[str, dict[str, float]]:
    """mAP@R, R-Precision and R@1 of ECCV Caption in %, both directions.

    Args:
        images, captions: embeddings of COCO's 5K test set, image by image in any order.
        captions_per_image: of every image, or of each.
        image_ids: of the split, COCO's own.
        plausible: folder with pm_image_to_caption.json and pm_caption_to_image.json,
            which the package does not hold; adds "pmrp" (Plausible-Match R-Precision).
        annotations: folder of the annotations; None: the one in the package.

    Returns:
        {"i2t" | "t2i": {"map_at_r", "rprecision", "r1"[, "pmrp"]}}

    Raises:
        InputError: the package or a file is missing, annotations are damaged, the split
            holds other images or not all of them, or embeddings are NaN or infinite.
    """
    check_finite("images", images)
    check_finite("captions", captions)
    folder = annotations or _package_folder()
    listed = _coco_captions(folder)
    images, captions, _, image_rows, caption_rows = join(
        images,
        captions,
        captions_per_image,
        image_ids,
        listed,
        "ECCV Caption: COCO's test images",
    )
    if len(images) < len(listed):
        absent = next(image for image in listed if image not in image_rows)
        raise InputError(
            f"ECCV Caption: the split lacks {len(listed) - len(images):,} of COCO's "
            f"{len(listed):,} test images, such as {absent}"
        )
    image_index = {int(image): row for image, row in image_rows.items()}
    caption_index = {int(caption): row for caption, row in caption_rows.items()}
    sides = {
        "i2t": (images, captions, image_index, caption_index),
        "t2i": (captions, images, caption_index, image_index),
    }

    def average_precision(ranks: np.ndarray, size: int) -> float:
        """mAP@R: the precision at every positive among the first R = `size`, / R."""
        found = ranks[ranks < size]
        return np.sum(np.arange(1, len(found) + 1) / (found + 1)) / size

    def r_precision(ranks: np.ndarray, size: int) -> float:
        """R-Precision: the share of positives among the first R = `size`."""
        return np.count_nonzero(ranks < size) / size

    def percent(values: Iterable[float]) -> float:
        return 100.0 * float(np.mean(list(values)))

    result = {}
    for direction, side in sides.items():
        name = _DIRECTIONS[direction]
        ranked, sizes = _ranked(folder / f"eccv_{name}.json", *side)
        result[direction] = {
            "map_at_r": percent(map(average_precision, ranked, sizes)),
            "rprecision": percent(map(r_precision, ranked, sizes)),
            "r1": percent(0 in ranks for ranks in ranked),
        }
        if plausible is not None:
            ranked, sizes = _ranked(plausible / f"pm_{name}.json", *side)
            result[direction]["pmrp"] = percent(map(r_precision, ranked, sizes))
    return result


def _package_folder() -> Path:
    # Only its files are of use: importing it would warn about what it cannot find.
    require_extra("ECCV Caption", "eccv")
    return resolve_folder("package:eccv_caption/data")


def _coco_captions(folder: Path) -> dict[str, list[str]]:
    """{image id: its caption ids} of COCO's 5K test set."""
    path = folder / "coco_test_ids.npy"
    try:
        caption_ids = np.load(path).tolist()
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: {error}") from None
    path = folder / "original_caption_to_image.json"
    image_of = _listed(path)
    listed: dict[str, list[str]] = {}
    for caption in caption_ids:
        if caption not in image_of:
            raise InputError(
                f"{path}: caption {caption} of coco_test_ids.npy is missing"
            )
        listed.setdefault(str(image_of[caption][0]), []).append(str(caption))
    return listed


def _ranked(
    path: Path,
    queries: np.ndarray,
    items: np.ndarray,
    query_index: dict[int, int],
    item_index: dict[int, int],
) -> tuple[list[np.ndarray], list[int]]:
    """Ranks of the positives of every judged query, and how many are listed."""
    listed = _listed(path)
    unknown = listed.keys() - query_index.keys()
    if unknown:
        raise InputError(f"{path}: entry {min(unknown)} is not in COCO's test set")
    rows = [query_index[query] for query in listed]
    positives = [
        [item_index[i] for i in ids if i in item_index] for ids in listed.values()
    ]
    sizes = [len(ids) for ids in listed.values()]
    absent = sum(sizes) - sum(map(len, positives))
    if absent:
        logging.info("%s: %d positives not in the split count as missed", path, absent)
    found = positive_ranks(queries[rows], items, positives, path.stem)
    return [ranks for ranks, _ in found], sizes


def _listed(path: Path) -> dict[int, list[int]]:
    """{query id: item ids, each once} of an annotation file."""
    listed = {}
    for query, ids in read_object(path).items():
        try:
            listed[int(query)] = list(dict.fromkeys(int(item) for item in ids))
        except (TypeError, ValueError):
            raise InputError(f"{path}: entry {query!r} is not a list of ids") from None
        if not ids:
            raise InputError(f"{path}: entry {query!r} lists nothing")
    return listed
