"""The core of the package, without the packages that only some commands need."""

import itertools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import one_line_error
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.base.extras import EXTRAS, require_extra

OPTIONAL = sorted({*itertools.chain(*(modules for _, modules in EXTRAS.values()))})


def asked(extra: str, extras: dict[str, list[str]]) -> set[str]:
    """The packages of an extra, those of the extras that it names among them."""
    found: set[str] = set()
    for requirement in extras[extra]:
        if other := re.match(r"vse_jax\[(\w+)\]", requirement):
            found |= asked(other[1], extras)
        else:
            found.add(re.split(r"[\[=<>]", requirement)[0])
    return {re.sub("[-_.]+", "-", name).lower() for name in found}


def test_the_extras_are_those_of_pyproject():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    of_modules = packages_distributions()
    for extra, (_, modules) in EXTRAS.items():
        names = {re.sub("[-_.]+", "-", of_modules[m][0]).lower() for m in modules}
        assert names <= asked(extra, extras), extra
    for_make = {"data", "dev", "browser", "uv", "docs", "cuda", "tpu"}
    assert extras.keys() - EXTRAS.keys() == for_make


def test_a_missing_one_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    require_extra("--mode=train", "train", "matplotlib")
    line = (
        "--mode=train: the package grain is not installed: pip install "
        "'vse_jax[train]', or in a clone make setup"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        require_extra("--mode=train", "train")


USE = f"""
import sys
import filelock  # of JAX, which takes another way on Windows
for name in {[*OPTIONAL, "fcntl"]}:  # Windows has no fcntl
    sys.modules[name] = None
import vse_jax
model = vse_jax.load(sys.argv[1])
assert model.encode_images([sys.argv[2]]).shape == (1, model.dim)
assert model.encode_captions(["a red bar"]).shape == (1, model.dim)
model.explain(sys.argv[2], "a red bar")
try:
    vse_jax.plot_explanation
except vse_jax.InputError as error:
    print(error)
"""


@pytest.mark.system
def test_a_model_is_used_without_any(tiny_root, environment, tmp_path):
    workdir = write_run(draft(tiny.get_config(str(tiny_root))), tmp_path / "run")
    image = next((tiny_root / "images").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", USE, str(workdir), str(image)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'vse_jax[figures]'" in done.stdout


MAIN = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
from vse_jax.main import main
main()
"""


@pytest.mark.system
@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        *(("train", "train"), ("export", "train"), ("compile", "train")),
        *(("eval", "figures"), ("plot", "figures"), ("prepare", "demo")),
        ("serve", "search"),
    ],
)
def test_a_mode_says_which_extra_it_needs(mode, extra, environment, tmp_path):
    args = ["--config=configs/openmoji.py", f"--workdir={tmp_path}", f"--mode={mode}"]
    args += [f"--config.data.root={tmp_path / 'data'}"]
    line = one_line_error(args, environment, program=[sys.executable, "-c", MAIN])
    assert f"pip install 'vse_jax[{extra}]'" in line
