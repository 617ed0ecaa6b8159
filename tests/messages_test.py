"""What the program's texts name, in errors and elsewhere, is there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vse_jax import main
from vse_jax.config import FIELDS

FILES = sorted([*Path("vse_jax").rglob("*.py"), *Path("vse_search").rglob("*.py")])
GAP = "\N{REPLACEMENT CHARACTER}"  # where a text has a value put in
OF_OTHERS = {"--revision", "--local-dir", "--backbone_source", "--no-deps"}


def texts() -> Iterator[tuple[str, str]]:
    """(where, text) of every string of the program."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                text = "".join(p if isinstance(p, str) else GAP for p in parts)
                yield f"{path}:{node.lineno}", text
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path}:{node.lineno}", node.value


def missing(pattern: str, known: set[str]) -> list[str]:
    """Where a text names something that is not known."""
    found = [
        (where, name) for where, text in texts() for name in re.findall(pattern, text)
    ]
    assert found
    return [f"{where}: {name}" for where, name in found if name not in known]


def test_fields():
    fields = set(FIELDS)
    groups = {field.rpartition(".")[0] for field in fields}
    groups |= {group.rpartition(".")[0] for group in groups}
    files = {"json", "py"}  # config.json is no field
    pattern = rf"(?<![\w./])config\.((?:[a-z_]+\.)*[a-z_]+)(?![\w.]*{GAP})"
    assert not missing(pattern, fields | groups | files)


@pytest.mark.system
def test_flags_and_modes():
    modes = {f"--mode={mode}" for mode in main.MODES}
    assert not missing(r"--mode=[a-z_]+", modes)
    helps = [
        subprocess.run(
            [sys.executable, program, "--helpfull"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for program in ("main.py", "convert_torch_weights.py")
    ]
    flags = {
        f"--{name}"
        for text in helps
        for name in re.findall(r"--(?:\[no\])?([\w-]+)", text)
    }
    assert "--workdir" in flags
    assert not missing(r"(?<![\w-])--[a-z][\w-]*", flags | OF_OTHERS)


def test_files():
    there = {str(path) for path in Path("docs").rglob("*.md")}
    assert not missing(r"docs/[\w/]+\.md", there)


def test_targets():
    makefile = Path("Makefile").read_text(encoding="utf-8")
    targets = {f"make {name}" for name in re.findall(r"^([\w-]+):", makefile, re.M)}
    assert not missing(r"make (?:setup|demo|study|test)[\w-]*", targets)
