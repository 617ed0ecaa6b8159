"""The package that `pip install .` gives, outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.runs import write_run

HERE = Path.cwd()

USE = """
import sys
import numpy as np
import vse_jax
model = vse_jax.load(sys.argv[1])
found = model.encode_captions(["a red bar at the left"])
assert found.shape == (1, model.dim) and abs(np.linalg.norm(found) - 1) < 1e-5
print(vse_jax.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tracked = ["git", "ls-files", "-z", "vse_jax", "pyproject.toml", "README.md"]
    names = subprocess.run(tracked, capture_output=True, check=True, text=True).stdout
    for name in [*names.split("\0")[:-1], "LICENSE"]:  # a copy: builds leave folders
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((HERE / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    build = [*pip, "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"vse_jax/py.typed", "vse_jax/api.py"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vse_jax"}


def test_a_wheel_embeds_outside_the_checkout(wheel, tiny_root, environment, tmp_path):
    workdir = write_run(tiny.get_config(str(tiny_root)), tmp_path / "run")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    run = subprocess.run(
        [sys.executable, "-P", "-c", USE, str(workdir)],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.fspath(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(site / "vse_jax" / "__init__.py")
