"""The pages' commands run as they stand, in their order, on tiny data.

What stands for a reader's own is replaced: runs/demo by a run of the tiny model, the
recipes by its config, the Hugging Face Hub by a stand-in.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import siglip, tiny
from tests.helpers.drafts import draft
from tests.helpers.hub import WRITER, serving
from tests.helpers.runs import write_run

pytestmark = pytest.mark.system

SIGLIP = "google/siglip2-base-patch16-256"
PROGRAMS = {
    "python": [sys.executable],
    "hf": [sys.executable, "-m", "huggingface_hub.cli.hf"],
}
# The page: what is left out of it, as it needs a server, other data or a large model.
LEFT_OUT = {
    "README.md": "serve|convert_torch|coco_grid|released",
    "docs/quickstart.md": "--mode=prepare$",
    "docs/models.md": "serve|convert_torch|configs/|runs/released",
    "docs/search.md": "serve|postgres",
    "docs/sharing.md": "",
    "docs/python.md": "",
    "docs/data.md": "configs/coco|punkt_tab",
    "docs/reproduce.md": "configs/coco|gpo_synthetic",
    "docs/extending.md": "-m pytest",
}


def commands(page: str) -> list[tuple[list[str], str | None]]:
    """The indented lines of programs, each with the error that the page shows below it.

    NAME=VALUE is put in where $NAME stands; a block of Python is one command.
    """
    found: list[tuple[list[str], str | None]] = []
    names: dict[str, str] = {}
    for block in re.findall(r"(?:^    .+\n|^\n)+", page.replace("\\\n", " "), re.M):
        lines = [line[4:] for line in block.splitlines() if line.strip()]
        if lines and lines[0].startswith("import"):
            found.append(([sys.executable, "-c", "\n".join(lines)], None))
            continue
        for line in lines:
            if set_here := re.match(r"(\w+)=(\S+)", line):
                names[set_here[1]] = set_here[2]
            elif line.startswith("error: ") and lines[0].startswith("$ "):
                command, _ = found.pop()
                found.append((command, line))
            elif line.removeprefix("$ ").split()[0] in PROGRAMS:
                for name, value in names.items():
                    line = line.replace(f"${name}", value)
                program, *rest = shlex.split(line.removeprefix("$ "), comments=True)
                found.append(([*PROGRAMS[program], *rest], None))
    return found


@pytest.fixture
def own(tmp_path):
    """What a page writes → what it is here."""
    root = tiny.write_root(tmp_path / "tiny")
    first, second, *_ = sorted((root / "images").iterdir())
    photos = tmp_path / "photos"
    shutil.copytree(root / "images", photos / "images")
    rows = ["image,caption1,caption2,split"]
    for number, image in enumerate(sorted((photos / "images").iterdir())):
        split = ("train", "train", "dev", "test")[number % 4]
        rows.append(f"images/{image.name},a red bar,a circle at the left,{split}")
    (photos / "captions.csv").write_text("\n".join(rows) + "\n")
    return {
        "configs/openmoji.py": f"tests/helpers/tiny.py:{root}",
        "examples/attention_pool/config.py": f"tests/helpers/tiny.py:{root}",
        "runs/": f"{tmp_path}/runs/",
        "data/openmoji/images/128px/1F63B.png": str(first),
        "data/openmoji": str(root),
        "data/coco": str(root),
        "data/mine": str(tmp_path / "mine"),
        "source=photos": f"source={photos}",
        "data/weights/": f"{tmp_path}/weights/",
        "max_tokens=32": "max_tokens=12",
        "USER/NAME": "someone/demo",
        "a.jpg": str(first),
        "b.jpg": str(second),
        "two dogs by the sea": "a red bar",
        "~/Pictures": str(root / "images"),
    }


@pytest.mark.parametrize("name", LEFT_OUT)
def test_commands_of(name, own, environment, tmp_path):
    page = Path(name).read_text(encoding="utf-8")
    root = tmp_path / "tiny"
    config = draft(tiny.get_config(str(root)))
    if name != "docs/quickstart.md":  # which trains its own
        for run in ("demo", "a", "b"):
            write_run(config, tmp_path / "runs" / run, seed=len(run))
    for written, here in own.items():
        page = page.replace(written, here)
    left_out = re.compile(LEFT_OUT[name] or "nothing")
    found = [(c, e) for c, e in commands(page) if not left_out.search(" ".join(c))]
    assert found
    (tmp_path / "siglip").mkdir()
    published = siglip.write_folder(tmp_path / "siglip", siglip.peer())
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    with serving({SIGLIP: files}) as (address, _):
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        for command, error in found:
            done = subprocess.run(
                command,
                env=environment | hub | {"HF_TOKEN": WRITER},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == (error is not None), (command, done.stderr)
            if error is not None:
                assert done.stderr.splitlines()[-1] == error
