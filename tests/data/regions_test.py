"""Region features, read row by row, and their size augmentation."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.data.regions import NpyRows, drop_regions


def test_pickles_as_its_path(tmp_path):
    values = np.arange(60_000, dtype=np.float32).reshape(100, 600)
    np.save(tmp_path / "values.npy", values)

    data = pickle.dumps(NpyRows(tmp_path / "values.npy", stride=2))
    again = pickle.loads(data)

    assert len(data) < 1000
    assert again.shape == (50, 600)
    np.testing.assert_array_equal(again[3], values[6])
    np.testing.assert_array_equal(again[-1], values[98])
    np.testing.assert_array_equal(again[1:4], values[2:8:2])
    assert again[7:7].shape == (0, 600)


@pytest.mark.parametrize(
    "content", [None, b"", b"not an array", "truncated", "objects", "columns"], ids=str
)
def test_bad_file_is_named(tmp_path, content):
    path = tmp_path / "values.npy"
    if content == "truncated":
        np.save(path, np.zeros((10, 10)))
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "columns":
        np.save(path, np.zeros((10, 5), order="F"))
    elif content == "objects":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=r"values.npy: ") as error:
        NpyRows(path)
    assert "\n" not in str(error.value)


_READ = """
import sys
import numpy as np
from configs import coco_region
from vse_jax.data.layout import read_split
from vse_jax.data.rows import ImageRows

config = coco_region.get_config()
config.data.root = sys.argv[1]
split = read_split(config, "train")
rows = ImageRows(config, split)
batch = rows.empty(128)
images = np.linspace(0, len(split.image_ids) - 1, 4096).astype(int)  # 1.2 GB
for i, image in enumerate(images):
    rows.read(batch, i % 128, image, None)
last = split.regions[images[-1]]
status = open("/proc/self/status").read()
print(len(split.image_ids), last.mean(), status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_a_file_larger_than_memory_is_read_in_little_memory(tmp_path):
    """COCO's training features: 33 GB, here with a hole for all but the last image."""
    images = 113_287
    folder = tmp_path / "precomp"
    folder.mkdir()
    ids = "".join(f"{i}\n" for i in range(images))
    (folder / "train_ids.txt").write_text(ids)
    (folder / "train_caps.txt").write_text("a caption\n" * 5 * images)
    path = folder / "train_ims.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (images, 36, 2048)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
    row = 4 * 36 * 2048  # bytes
    os.truncate(path, start + images * row)
    with path.open("r+b") as file:
        file.seek(-row, os.SEEK_END)
        file.write(np.ones(row // 4, "<f4").tobytes())

    command = [sys.executable, "-c", _READ, str(tmp_path)]
    project = Path(__file__).parents[2]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=project
    )

    count, last, peak = done.stdout.split()  # peak: resident memory, kB
    assert path.stat().st_size > 33e9
    assert (int(count), float(last)) == (images, 1.0)
    assert int(peak) < 0.5e6


def test_drop_regions():
    features = np.arange(36, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)

    kept = [drop_regions(features, rng, 0.2)[:, 0] for _ in range(500)]

    np.testing.assert_allclose(np.mean([len(k) for k in kept]) / 36, 0.8, atol=0.01)
    assert all((np.diff(k) > 0).all() for k in kept)  # a subset, in order
    assert (drop_regions(features, rng, 0.0) == features).all()


def test_drop_regions_keeps_one():
    features = np.arange(3, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)

    kept = [drop_regions(features, rng, 1.0) for _ in range(50)]

    assert {len(k) for k in kept} == {1}
    assert {k.item() for k in kept} == {0, 1, 2}
