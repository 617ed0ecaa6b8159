import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.golden_weights import FOLDER
from vse_jax.base.errors import InputError
from vse_jax.evaluation.cxc import cxc_metrics

GOLDEN = np.load(FOLDER / "cxc.npz")
FILES = (
    "testall_ids.txt",
    "testall_capids.txt",
    "cxc_it.json",
    "cxc_i2i.json",
    "cxc_t2t.json",
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the golden annotations, to be damaged."""
    return shutil.copytree(FOLDER / "cxc_annots", tmp_path / "cxc_annots")


def metrics(folder: Path) -> dict:
    return cxc_metrics(GOLDEN["images"], GOLDEN["captions"], folder)


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_all_tasks_equal_the_original():
    found = metrics(FOLDER / "cxc_annots")
    assert list(found) == ["i2t", "t2i", "i2i", "t2t"]
    for task, recalls in found.items():
        assert [recalls["r1"], recalls["r5"], recalls["r10"]] == GOLDEN[task].tolist()


def test_image_ids_may_be_listed_once_an_image(folder):
    expected = metrics(folder)
    path = folder / "testall_ids.txt"
    path.write_text("\n".join(path.read_text().split()[::5]))
    assert metrics(folder) == expected


def test_a_query_whose_matches_are_all_elsewhere_fails(folder):
    change(folder / "cxc_it.json", lambda it: it["i2t"].update({"1000": [[9, 5.0]]}))
    without = metrics(folder)["i2t"]["r10"]
    assert without == 97.5  # 39 of 40, where all succeed otherwise


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        metrics(folder)


@pytest.mark.parametrize("name", FILES[:2])
def test_ids_of_another_split(folder, name):
    path = folder / name
    path.write_text("\n".join(path.read_text().split()[:-1]))
    with pytest.raises(InputError, match=rf"{name}: 199 ids, but the split has"):
        metrics(folder)


def test_an_id_listed_twice(folder):
    path = folder / "testall_capids.txt"
    path.write_text(path.read_text().replace("50003\n", "50000\n"))
    with pytest.raises(InputError, match=r"capids\.txt: id '50000' is listed twice"):
        metrics(folder)


def test_a_query_without_an_entry(folder):
    change(folder / "cxc_t2t.json", lambda t2t: t2t.pop("50006"))
    with pytest.raises(InputError, match=r"cxc_t2t\.json: no entry for id '50006'"):
        metrics(folder)


def test_an_unknown_match_within_a_set(folder):
    change(folder / "cxc_i2i.json", lambda i2i: i2i["1007"].append([5, 4.0]))
    with pytest.raises(InputError, match=r"i2i\.json: entry '1007' names id '5'"):
        metrics(folder)


def test_no_image_matches_another(folder):
    change(folder / "cxc_i2i.json", lambda i2i: i2i.update({id_: [] for id_ in i2i}))
    with pytest.raises(InputError, match=r"i2i\.json: no two items"):
        metrics(folder)


@pytest.mark.parametrize("entry", [5, [5], [["x", "y"]], [[1, 2, 3]]])
def test_a_damaged_entry(folder, entry):
    change(folder / "cxc_i2i.json", lambda i2i: i2i.update({"1014": entry}))
    with pytest.raises(InputError, match=r"i2i\.json: entry '1014' is not a list"):
        metrics(folder)


def test_a_file_without_a_direction(folder):
    change(folder / "cxc_it.json", lambda it: it.pop("t2i"))
    with pytest.raises(InputError, match=r"cxc_it\.json: no object 't2i'"):
        metrics(folder)


def test_embeddings_that_are_not_finite():
    images = GOLDEN["images"].copy()
    images[3, 0] = np.nan
    with pytest.raises(InputError, match=r"images: 1 of 40 .*\(rows from 0: 3\)"):
        cxc_metrics(images, GOLDEN["captions"], FOLDER / "cxc_annots")
