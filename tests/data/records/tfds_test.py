"""The TFDS data set, as TFDS's own users open it."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.commands.export import export
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image
from vse_jax.data.records import tfds as tfds_builder

_USE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
example = builder.as_data_source("test")[5]
np.save(sys.argv[2], example["image"])
print(example["id"].decode(), *(c.decode() for c in example["captions"]), sep="\\n")
assert sorted(builder.info.splits) == ["dev", "test", "train"]
assert "tensorflow" not in sys.modules
"""


def test_opens_without_our_code_and_tensorflow(tiny_root, tiny_config, tmp_path):
    shutil.copytree(tiny_root, tmp_path / "tiny")
    tiny_config.data.root = str(tmp_path / "tiny")
    tiny_config.data.format = "tfds"
    export(tiny_config)
    tiny_config.data.format = "folder"
    split = read_split(tiny_config, "test")

    folder = tmp_path / "tiny/tfds/image_text/1.0.0"
    command = [sys.executable, "-c", _USE, str(folder), str(tmp_path / "image.npy")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert not (tmp_path / "tiny/tfds/downloads").exists()
    image_id, *captions = done.stdout.splitlines()
    assert image_id == split.image_ids[5]
    assert captions == split.captions[25:30]
    np.testing.assert_array_equal(
        np.load(tmp_path / "image.npy"), load_image(split.images[5])
    )


@pytest.mark.parametrize("name", ["all", "val 1k", "val.1k"])
def test_names_that_tfds_would_misread(name, tmp_path):
    with pytest.raises(InputError, match=f"split '{name}': no name that TFDS takes"):
        tfds_builder.write(tmp_path, {name: [list]}, ())
