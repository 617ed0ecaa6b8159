"""The package that `pip install .` gives, outside the checkout."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vse_jax
from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.runs import write_run

pytestmark = pytest.mark.system

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
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    subprocess.run(
        [*pip, "--quiet", "--no-deps", "--wheel-dir", folder, "."], check=True
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"vse_jax/py.typed", "vse_jax/api.py"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "vse_jax",
        "vse_search",
    }
    assert "vse_search/page/index.html" in names
    assert "vse_jax/checkpoints/templates/model_card.md" in names
    assert "vse_jax/data/prepare/openmoji_captions.csv" in names
    recipes = {f"vse_jax/recipes/{path}" for path in Path("configs").glob("*.py")}
    assert recipes == {name for name in names if "/recipes/" in name}


def test_the_index_page_links_to_nothing_that_is_not_there(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = (n for n in content.namelist() if n.endswith("/METADATA"))
        page = content.read(name).decode()
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert not [link for link in links if not link.startswith("https://")]


def test_the_command_finds_the_recipes_outside_the_checkout(
    wheel, environment, tmp_path
):
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
        (name,) = (n for n in content.namelist() if n.endswith("/entry_points.txt"))
        points = content.read(name).decode().splitlines()
    assert "vse-jax = vse_jax.main:main" in points
    (tmp_path / "mine.py").write_text("from configs.openmoji import get_config\n")

    def start(*arguments):
        program = "from vse_jax.main import main; main()"
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert start("--version").stdout == f"vse_jax {vse_jax.__version__}\n"
    assert "--workdir" in start("--help").stdout
    for config in ("configs/openmoji.py:known", "mine.py"):
        done = start(
            f"--config={config}", "--mode=plot", "--config.seed=-1", "--workdir=w"
        )
        assert done.stderr == "error: config.seed: -1 is less than 0\n"


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("", ("train", "figures", "demo", "bigru", "eccv", "data")),
        ("-search", ("search",)),
        ("-dev", ("dev",)),
    ],
)
def test_a_lock_holds_what_the_project_asks_for(lock, extras):
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lists = [project["optional-dependencies"][extra] for extra in extras]
    asked = [*project["dependencies"], *itertools.chain(*lists)]
    text = Path(f"requirements{lock}.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, flags=re.M))
    for requirement in map(Requirement, asked):
        if requirement.name != "vse_jax":
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert locked[name] in requirement.specifier, requirement


def test_a_wheel_embeds_outside_the_checkout(wheel, tiny_root, environment, tmp_path):
    workdir = write_run(draft(tiny.get_config(str(tiny_root))), tmp_path / "run")
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


STATE = """
import json, locale, logging, os, signal, sys, warnings
import absl.logging, cv2, jax, PIL.Image
from orbax import checkpoint  # what its import changes is not ours

def state():
    return {
        "pillow": PIL.Image.MAX_IMAGE_PIXELS,
        "opencv": cv2.getNumThreads(),
        "jax": dict(jax.config.values),
        "log levels": {
            name: logging.getLogger(name).level for name in ("", "absl", "jax", "PIL")
        },
        "log handlers": list(map(str, logging.root.handlers)),
        "log filters": list(map(str, logging.getLogger("absl").filters)),
        "absl": absl.logging.get_verbosity(),
        "warnings": list(map(str, warnings.filters)),
        "signals": {s.name: str(signal.getsignal(s)) for s in signal.Signals},
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "path": list(sys.path),
        "hidden": [name for name, module in sys.modules.items() if module is None],
        "hooks": [str(sys.excepthook), str(sys.unraisablehook)],
        "folder": os.getcwd(),
    }

def check(*third_parties):
    now = state()
    changed = {n: (before[n], now[n]) for n in now if before[n] != now[n]}
    assert changed.keys() <= set(third_parties), changed

before = state()
import vse_jax
model = vse_jax.load(sys.argv[1])
model.encode_captions(["a red bar"])
model.encode_images([sys.argv[2]])
check()
import vse_jax.train, vse_search.commands.index, vse_search.commands.serve
check("environment")
"""


def test_a_program_that_loads_a_model_stays_as_it_was(tiny_root, environment, tmp_path):
    workdir = write_run(draft(tiny.get_config(str(tiny_root))), tmp_path / "run")
    picture = next((tiny_root / "images").iterdir())
    settings = ("JAX_COMPILATION_CACHE_DIR", "PYTHONWARNINGS")
    run = subprocess.run(
        [sys.executable, "-c", STATE, str(workdir), str(picture)],
        env={name: x for name, x in environment.items() if name not in settings}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr  # nor does it say anything
    assert not (tmp_path / ".cache" / "vse_jax" / "compiled").exists()
