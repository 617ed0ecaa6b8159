"""Small sources of data, and what a data root made of them holds."""

import json
from pathlib import Path

from PIL import Image

from tests.helpers.drafts import draft
from vse_jax.data.prepare.own_images import _hashed_split


def config_for(root: Path, source: Path | str, name: str = "mine"):
    c = draft()
    c.data.name, c.data.root, c.data.source = name, str(root), str(source)
    return c


def save_image(path: Path, width: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 4), "red").save(path)
    return path


def contents(root: Path) -> dict:
    """{list: its lines} of a data root, and its mapping."""
    lists = {path.stem: path.read_text().splitlines() for path in root.glob("*/*.txt")}
    return lists | {"mapping": json.loads((root / "id_mapping.json").read_text())}


def name_in(split: str, form: str = "{}") -> str:
    """The first name of this form that is put into `split` by its hash."""
    names = map(form.format, range(10**6))
    return next(name for name in names if _hashed_split(name) == split)
