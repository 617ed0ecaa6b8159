"""The table of estimates is of today's code, and the page shows it."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import estimates


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the stamps are of Python 3.11's syntax"
)
def test_every_row_is_of_todays_code_and_the_page_has_them_all():
    rows = json.loads(estimates.RESULTS.read_text())
    now = estimates.today().items()
    old = [name for name, row in rows.items() if not now <= row.items()]
    assert not old, "bring them up to date: python -m benchmarks.estimates"
    page = estimates.PAGE.read_text()
    assert estimates.in_page(page, rows) == page


def _program(name: str) -> str:
    """Lowered in a process of its own: JAX has eight CPUs in this one."""
    code = "import sys; from benchmarks.estimates import program as p; "
    code += "print(p(*sys.argv[1].split('@')))"
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        cwd=estimates.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", json.loads(estimates.RESULTS.read_text()))
def test_a_row_is_of_the_program_that_todays_code_makes(name):
    assert _program(name) == json.loads(estimates.RESULTS.read_text())[name]["program"]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("def f():\n    return 1\n", "def f():\n    '''One.'''\n    return 1\n", True),
        ("x = 1\n", "# One.\nx = 1\n", True),
        ("x = 1\n", "x = 2\n", False),
    ],
)
def test_the_stamp_is_of_code_not_of_comments(before, after, same, monkeypatch):
    monkeypatch.setattr(estimates, "RECIPES", ())
    read = estimates.Path.read_text
    stamps = []
    for text in (before, after):

        def read_text(path, *_, text=text):
            return text if path.name == "losses.py" else read(path)

        monkeypatch.setattr(estimates.Path, "read_text", read_text)
        stamps.append(estimates.sources())
    assert (stamps[0] == stamps[1]) == same
