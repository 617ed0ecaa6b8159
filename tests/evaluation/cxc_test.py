import json
import math
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


IMAGE_IDS = (FOLDER / "cxc_annots/testall_ids.txt").read_text().split()[::5]


def metrics(folder: Path, order=range(40), ids=IMAGE_IDS) -> dict:
    """Of a split that lists the golden's images in this order, by these ids."""
    captions = GOLDEN["captions"].reshape(40, 5, -1)[list(order)]
    return cxc_metrics(
        GOLDEN["images"][list(order)],
        captions.reshape(5 * len(captions), -1),
        5,
        [ids[k] for k in order],
        folder,
    )


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


def test_images_are_found_by_id_in_any_order(folder):
    shuffled = np.random.default_rng(0).permutation(40)
    assert metrics(folder, shuffled) == metrics(folder)


def test_leading_zeros_and_numbers_are_the_same_id(folder):
    padded = [f"{image_id:0>12}" for image_id in IMAGE_IDS]
    assert metrics(folder, ids=padded) == metrics(folder)
    change(folder / "cxc_i2i.json", lambda i2i: i2i.update({"01007": i2i.pop("1007")}))
    assert metrics(folder) == metrics(FOLDER / "cxc_annots")
    with pytest.raises(InputError, match=r"'1000' and '01000' are the same number"):
        metrics(folder, ids=["1000", "01000", *IMAGE_IDS[2:]])


def test_captions_are_listed_with_their_images_in_any_order(folder):
    expected = metrics(folder)
    lines = [
        (folder / name).read_text().split()
        for name in ("testall_ids.txt", "testall_capids.txt")
    ]
    order = np.random.default_rng(0).permutation(40)
    places = [5 * k + j for j in range(5) for k in order]
    for name, listed in zip(("ids", "capids"), lines, strict=True):
        text = "\n".join(listed[place] for place in places)
        (folder / f"testall_{name}.txt").write_text(text)
    assert metrics(folder) == expected


def test_ids_that_the_set_lacks_are_counted(folder):
    numbered = [str(k) for k in range(40)]
    message = (
        r"testall_ids\.txt: 40 of the split's 40 image ids are missing, such as '0'"
    )
    with pytest.raises(InputError, match=message):
        metrics(folder, ids=numbered)
    with pytest.raises(InputError, match=r"2 of the split's 40 .* such as 'x'"):
        metrics(folder, ids=[*IMAGE_IDS[:38], "x", "y"])


def test_a_part_of_the_images(folder):
    """Judged items outside of it are left out, as are its queries without any."""
    similar = {"i2t": {}, "t2i": {}}
    it = json.loads((folder / "cxc_it.json").read_text())
    ids = set(IMAGE_IDS[:20])
    captions = set((folder / "testall_capids.txt").read_text().split()[:100])
    for task, queries, items in (("i2t", ids, captions), ("t2i", captions, ids)):
        similar[task] = {
            query: [pair for pair in judged if str(pair[0]) in items]
            for query, judged in it[task].items()
            if query in queries
        }
    found = metrics(folder, range(20))

    (folder / "cxc_it.json").write_text(json.dumps(similar))
    for name, items in (("i2i", ids), ("t2t", captions)):
        path = folder / f"cxc_{name}.json"
        judged = json.loads(path.read_text())
        kept = {
            query: [pair for pair in pairs if str(pair[0]) in items]
            for query, pairs in judged.items()
            if query in items
        }
        path.write_text(json.dumps(kept))
    for name, count in (("ids", 100), ("capids", 100)):
        path = folder / f"testall_{name}.txt"
        path.write_text("\n".join(path.read_text().split()[:count]))
    assert metrics(folder, range(20)) == found


def test_another_number_of_captions_than_the_set_has(folder):
    captions = GOLDEN["captions"].reshape(40, 5, -1)[:, :4].reshape(160, -1)
    with pytest.raises(InputError, match=r"'1000' has 5 captions, but 4 in the split"):
        cxc_metrics(GOLDEN["images"], captions, 4, IMAGE_IDS, folder)


def test_more_captions_than_the_set_has(folder):
    """As of COCO's images with six, of which the published lists take five."""
    captions = np.insert(GOLDEN["captions"], 5, 0.5, axis=0)
    counts = np.array([6] + 39 * [5])
    message = r"'1000' has 5 captions, but 6 .*; --config.data.captions_per_image=5 "
    with pytest.raises(InputError, match=message):
        cxc_metrics(GOLDEN["images"], captions, counts, IMAGE_IDS, folder)


def test_images_with_different_numbers_of_captions(folder):
    """Without the last caption of an image, the set and the split agree again."""
    path = folder / "testall_ids.txt"
    ids, caption_ids = path.read_text().split(), folder / "testall_capids.txt"
    path.write_text("\n".join(ids[:4] + ids[5:]))
    listed = caption_ids.read_text().split()
    caption_ids.write_text("\n".join(listed[:4] + listed[5:]))
    captions = np.delete(GOLDEN["captions"], 4, axis=0)
    counts = np.array([4] + 39 * [5])
    found = cxc_metrics(GOLDEN["images"], captions, counts, IMAGE_IDS, folder)
    # One caption less of 200 hardly matters, if all others are where they were.
    for task, whole in metrics(FOLDER / "cxc_annots").items():
        for k, recall in whole.items():
            assert found[task][k] == pytest.approx(recall, abs=1.6)


def test_caption_ids_in_another_order_than_the_image_ids(folder):
    path = folder / "testall_capids.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))
    with pytest.raises(
        InputError, match=r"cxc_it\.json: 200 of 200 captions do not fit"
    ):
        metrics(folder)


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
def test_id_lists_of_different_lengths(folder, name):
    path = folder / name
    path.write_text("\n".join(path.read_text().split()[:-1]))
    with pytest.raises(InputError, match=r"ids\.txt: (199|200) ids do not fit the"):
        metrics(folder)


def test_an_id_listed_twice(folder):
    path = folder / "testall_capids.txt"
    path.write_text(path.read_text().replace("50003\n", "50000\n"))
    with pytest.raises(InputError, match=r"capids\.txt: id '50000' is listed twice"):
        metrics(folder)


def test_a_query_without_an_entry(folder):
    change(folder / "cxc_t2t.json", lambda t2t: t2t.pop("50006"))
    message = r"cxc_t2t\.json: no entry for id '50006'; 1 of the split's 200 ids have"
    with pytest.raises(InputError, match=message):
        metrics(folder)


def test_an_unknown_match_within_a_set(folder):
    change(folder / "cxc_i2i.json", lambda i2i: i2i["1007"].append([5, 4.0]))
    with pytest.raises(InputError, match=r"i2i\.json: entry '1007' names id '5'"):
        metrics(folder)


def test_no_image_matches_another(folder):
    change(folder / "cxc_i2i.json", lambda i2i: i2i.update({id_: [] for id_ in i2i}))
    with pytest.raises(InputError, match=r"i2i\.json: no two items"):
        metrics(folder)


@pytest.mark.parametrize("entry", [5, [5], [["x", "y"]], [[1, 2, 3]], [[1, math.nan]]])
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
        cxc_metrics(images, GOLDEN["captions"], 5, IMAGE_IDS, FOLDER / "cxc_annots")
