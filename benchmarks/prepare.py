"""Rows a second, and memory, of --mode=prepare for each kind of source.

python -m benchmarks.prepare

Made up in a temporary folder (3 GB): JPEG images of 256 px in 10,000 samples, and 36
regions of 2,048 features for 2,000 images. All files were just written, so the disk
plays little part.
"""

import base64
import contextlib
import io
import json
import multiprocessing
import re
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs import coco_region, openmoji
from vse_jax.commands.prepare import prepare
from vse_jax.config import typed, with_fields
from vse_jax.data.images import own_process

SAMPLES, FEATURES = 10_000, 2_000
_SPLITS = {0: "train", 1: "val", 2: "test"}
_NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = write_images(root / "images")
        sources = {
            "Karpathy's JSON": write_karpathy(root, images),
            "a CSV table": write_table(root / "images", images),
            "metadata.jsonl": write_metadata(root / "images", images),
            "tars": write_tars(root / "tars", images),
        }
        for kind, source in sources.items():
            fields = {"data.source": str(source), "data.images": f"{root / 'images'}"}
            measure(kind, fields, folder, SAMPLES)
        # Lists without images, and then their features.
        lists = {"data.source": str(sources["Karpathy's JSON"])}
        measure("its lists alone", lists | _REGIONS, folder, SAMPLES)
        features = {"data.source": str(write_features(root / "features.tsv"))}
        measure("region features", features | _REGIONS, folder, FEATURES)


_REGIONS = {"image.kind": "region"}


def write_images(folder: Path) -> list[Path]:
    folder.mkdir()
    file = io.BytesIO()
    Image.fromarray(_NOISE).resize((256, 256)).save(file, "JPEG")
    paths = [folder / f"{k:06}.jpg" for k in range(SAMPLES)]
    for path in paths:
        path.write_bytes(file.getvalue())
    return paths


def write_karpathy(folder: Path, images: list[Path]) -> Path:
    content = [
        {
            "filename": path.name,
            "imgid": k,
            # All whose features are made up are in the splits that are not `train`.
            "split": "train" if k >= FEATURES else _SPLITS[1 + k % 2],
            "sentences": [{"raw": f"a caption, number {n}"} for n in range(5)],
        }
        for k, path in enumerate(images)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": content}))
    return folder / "dataset.json"


def write_table(folder: Path, images: list[Path]) -> Path:
    lines = [f'{path.name},"a caption, number {n}"' for path in images for n in (1, 2)]
    (folder / "mine.csv").write_text("\n".join(["image,caption", *lines]))
    return folder / "mine.csv"


def write_metadata(folder: Path, images: list[Path]) -> Path:
    rows = [{"file_name": path.name, "text": "a caption"} for path in images]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "metadata.jsonl"


def write_tars(folder: Path, images: list[Path]) -> Path:
    folder.mkdir()
    for shard in range(10):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for path in images[shard::10]:
                for name in (path.name, f"{path.stem}.txt"):
                    content = path.read_bytes() if name == path.name else b"a caption"
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def write_features(path: Path) -> Path:
    numbers = np.random.default_rng(0).random((36, 2048), np.float32)
    cells = base64.b64encode(numbers.tobytes()).decode()
    boxes = base64.b64encode(bytes(36 * 4 * 4)).decode()
    with path.open("w") as file:
        for k in range(FEATURES):
            file.write(f"{k}\t640\t480\t36\t{boxes}\t{cells}\n")
    return path


def measure(kind: str, changes: dict, folder: str, rows: int) -> None:
    """Prepares a source in a process of its own, into a root for its fields' kind."""
    root = f"{folder}/regions" if "image.kind" in changes else f"{folder}/{kind}"
    fields = {"data.name": "mine", "data.root": root} | changes
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=_measured, args=(fields, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{kind}: failed")
    seconds, memory = results.get()
    print(f"{kind}: {rows / seconds:,.0f} images/s, {memory:.0f} MB", flush=True)


def _measured(fields: dict, results) -> None:
    """Puts (seconds, MB beyond what the imports take at most)."""
    own_process()
    base = coco_region if "image.kind" in fields else openmoji
    config = with_fields(typed(base.get_config()), fields)
    before = _peak()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(config)
    seconds = time.perf_counter() - start
    results.put((seconds, _peak() - before))


def _peak() -> float:
    """MB of memory that this process held at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000


if __name__ == "__main__":
    main()
