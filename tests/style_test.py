"""What the project promises of its code's shape."""

import ast
import subprocess
from pathlib import Path

import pytest

LINES, POSITIONAL = 60, 6
FILES = subprocess.run(
    ["git", "ls-files", "*.py"], capture_output=True, text=True, check=True
).stdout.split()


def functions(path: str):
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", [f for f in FILES if not f.startswith("tests/")])
def test_functions_are_short_and_take_few_arguments(path):
    for node in functions(path):
        where = f"{path}:{node.lineno} {node.name}"
        assert node.end_lineno - node.lineno < LINES, where
        arguments = [*node.args.posonlyargs, *node.args.args]
        names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
        assert len(names) <= POSITIONAL, where
        assert node.args.vararg is None or node.args.vararg.arg != "rest", where
