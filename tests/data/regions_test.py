"""Region features, read row by row, and their size augmentation."""

import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.config import ImageConfig
from vse_jax.data.regions import NpyRows, drop_regions, open_regions


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
from vse_jax.config import typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.collate import ImageCollator

config = with_fields(typed(coco_region.get_config()), {"data.root": sys.argv[1]})
split = read_split(config, "train")
rows = ImageCollator(config, split)
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


class TestRegions:
    """Features of four images with three regions each, as a split reads them."""

    IDS = ("7", "8", "9", "12")

    @pytest.fixture
    def features(self):
        return np.random.default_rng(0).random((4, 3, 8)).astype(np.float32)

    def open(self, tmp_path, array, stride=1):
        np.save(tmp_path / "train_ims.npy", array)
        config = ImageConfig(kind="region", max_regions=3, feature_dim=8)
        path = tmp_path / "train_ims.npy"
        return open_regions(path, self.IDS, np.full(4, stride), config)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_number_is_named_when_it_is_read(self, tmp_path, features, bad):
        features[2, 1, 5] = bad
        regions = self.open(tmp_path, features)
        np.testing.assert_array_equal(regions[1], features[1])
        message = r"train_ims\.npy, row 2, image id '9': NaN or infinity in region 1$"
        with pytest.raises(InputError, match=message):
            regions[2]
        with pytest.raises(InputError, match=message):
            pickle.loads(pickle.dumps(regions))[2]  # in a worker process

    def test_rows_once_per_caption(self, tmp_path, features):
        features[2, 1, 5] = np.nan
        regions = self.open(tmp_path, features.repeat(5, axis=0), stride=5)
        with pytest.raises(InputError, match=r"row 10, image id '9': .* region 1"):
            regions[2]

    @pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
    def test_other_floats_are_read_as_float32(self, tmp_path, features, dtype):
        regions = self.open(tmp_path, features.astype(dtype))
        assert regions[1].dtype == np.float32
        np.testing.assert_array_equal(
            regions[1], features[1].astype(dtype).astype(np.float32)
        )

    def test_a_double_beyond_float32(self, tmp_path, features):
        doubles = features.astype(np.float64)
        doubles[0, 2, 0] = 1e39
        with pytest.raises(InputError, match=r"row 0, image id '7': .* region 2"):
            self.open(tmp_path, doubles)[0]

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.complex64, np.bool_])
    def test_what_are_no_floats_is_refused(self, tmp_path, features, dtype):
        with pytest.raises(InputError, match=rf"{np.dtype(dtype)} values of shape"):
            self.open(tmp_path, features.astype(dtype))

    def test_a_number_alone_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"float64 values of shape \(\) are no"):
            self.open(tmp_path, np.float64(1.0))


OTHER_FILES = {
    "a .npz": (lambda file: np.savez(file, features=np.zeros(3)), "a .npz or another"),
    "an empty .npz": (np.savez, "a .npz or another zip archive"),
    "a pickle": (lambda file: pickle.dump([1.0], file), "a pickle"),
    "gzip": (lambda file: file.write(gzip.compress(b"x")), "a gzip file"),
    "HDF5": (lambda file: file.write(b"\x89HDF\r\n\x1a\n" + bytes(80)), "an HDF5 file"),
    "Git LFS": (
        lambda file: file.write(b"version https://git-lfs.github.com/spec/v1\noid"),
        "a pointer of Git LFS",
    ),
    "numbers": (lambda file: np.savetxt(file, np.eye(3)), "a text file"),
    "nothing": (lambda file: None, "empty"),
    "noise": (lambda file: file.write(bytes(range(90))), "something else"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_file_says_what_it_is(tmp_path, name):
    write, message = OTHER_FILES[name]
    with (tmp_path / "train_ims.npy").open("wb") as file:
        write(file)
    with pytest.raises(InputError, match=rf"train_ims\.npy: {message}.* not a \.npy"):
        NpyRows(tmp_path / "train_ims.npy")
