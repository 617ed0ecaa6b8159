"""docs/sharing.md: its commands, in their order, with a toy run and a stand-in Hub."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.hub import WRITER, serving
from tests.helpers.runs import write_run

pytestmark = pytest.mark.system

PROGRAMS = {
    "python": [sys.executable],
    "hf": [sys.executable, "-m", "huggingface_hub.cli.hf"],
}


def commands(page: str) -> list[list[str]]:
    """The indented lines: commands as they are, lines of Python as one."""
    blocks = re.findall(r"(?:^    .+\n|^\n)+", page, re.MULTILINE)
    found = []
    for block in blocks:
        lines = [line[4:] for line in block.splitlines() if line.strip()]
        if lines and lines[0].startswith("import"):
            found.append([sys.executable, "-c", "\n".join(lines)])
        else:
            words = [shlex.split(line) for line in lines]
            found += [[*PROGRAMS[word], *rest] for word, *rest in words]
    return found


def test_its_commands_work(tiny_root, environment, tmp_path):
    run = write_run(draft(tiny.get_config(str(tiny_root))), tmp_path / "run")
    page = Path("docs/sharing.md").read_text(encoding="utf-8")
    for name, here in (
        ("runs/demo", run),
        ("runs/theirs", tmp_path / "theirs"),
        ("data/openmoji", tiny_root),
        ("max_tokens=32", "max_tokens=12"),
        ("USER/NAME", "someone/demo"),
    ):
        page = page.replace(name, str(here))
    found = commands(page)
    assert len(found) == 7
    with serving({}) as (address, _):
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        for command in found:
            done = subprocess.run(
                command,
                env=environment | hub | {"HF_TOKEN": WRITER},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "theirs" / "eval_test.json").is_file()
    assert (run / "exported" / "README.txt").is_file()
