"""Terminals that lack characters, and names that hold what is none: all is printed."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import searching
from tests.helpers.drafts import draft
from tests.search.commands.serve_test import started
from vse_jax.config import save_config

pytestmark = pytest.mark.system

PROGRAM = """
from absl import app
from vse_jax import command_line as cli
from vse_jax.base.errors import InputError

def run(_):
    print("caf\\xe9 \\u6771\\u4eac \\udcff")
    raise InputError("\\u6771\\u4eac \\x1b[31m \\udcff.jpg: no picture")

app.run(cli.program(run), flags_parser=cli.parse)
"""
TERMINALS = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "utf-8"},
    {"PYTHONIOENCODING": "cp1252"},
]


def run(command, terminal):
    names = ("LC_ALL", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.run(command, capture_output=True, env=environment | terminal)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_what_an_encoding_lacks_is_escaped(terminal):
    done = run([sys.executable, "-c", PROGRAM], terminal)
    assert done.returncode == 1
    assert done.stdout.startswith(b"caf")
    assert done.stdout.endswith(b" \\udcff\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"error: ")
    assert line.endswith(rb" \x1b[31m \xff.jpg: no picture")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's folder with an index of odd names, which a server serves."""
    folder = tmp_path_factory.mktemp("run") / os.fsdecode(b"caf\xe9")
    for name in ("東京 \x1b[31m.png", "two\nlines.png"):
        searching.draw(folder / "pictures" / name, "purple")
    save_config(draft(), folder / "config.json")
    with started(folder):
        yield folder


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("form", ["table", "json", "paths"])
def test_every_name_is_found_and_printed(workdir, terminal, form):
    fields = {"query": "purple", "format": form, "min_score": 0.9}
    arguments = [f"--config.search.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "main.py", f"--workdir={workdir}", "--mode=search"]
    done = run([*command, *arguments], terminal)
    assert (done.returncode, done.stderr) == (0, b"")
    if form == "json":
        paths = [hit["path"] for hit in json.loads(done.stdout)]
        assert len(paths) == 3
        assert all(os.path.isfile(path) for path in paths)
        return
    lines = done.stdout.splitlines()
    assert len(lines) == {"table": 5, "paths": 3}[form]
    if form == "table":
        assert b"\x1b" not in done.stdout
        assert b"caf\\xe9" in done.stdout
    else:  # for other programs: a name's own bytes
        found = [path for path in lines if os.path.isfile(path)]
        assert len(found) == 2  # a line break stands as '\n'
        assert any(b"two\\nlines.png" in line for line in lines)
