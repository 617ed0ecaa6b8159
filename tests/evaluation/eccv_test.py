import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.evaluation.eccv import eccv_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its optional packages
    import eccv_caption
    from eccv_caption import _metrics as reference

PACKAGE = Path(eccv_caption.__file__).parent / "data"
CAPTION_IDS = np.load(PACKAGE / "coco_test_ids.npy")
ECCV_NAMES = {
    "map_at_r": "eccv_map_at_r",
    "rprecision": "eccv_rprecision",
    "r1": "eccv_r1",
}


def load(name: str) -> dict[int, list[int]]:
    listed = json.loads((PACKAGE / name).read_text())
    return {int(query): ids for query, ids in listed.items()}


def test_metrics_equal_those_of_the_package():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5000, 16)).astype(np.float32)
    noise = rng.normal(size=(25000, 16)).astype(np.float32)
    captions = np.repeat(images, 5, axis=0) + noise
    owner = load("original_caption_to_image.json")
    image_ids = np.array([owner[caption][0] for caption in CAPTION_IDS[::5]])
    found = eccv_metrics(images, captions, 5, image_ids.astype(str).tolist())

    sides = {
        "i2t": (images, captions, image_ids, CAPTION_IDS, "image_to_caption"),
        "t2i": (captions, images, CAPTION_IDS, image_ids, "caption_to_image"),
    }
    for direction, (queries, items, query_ids, item_ids, name) in sides.items():
        judged = load(f"eccv_{name}.json")
        row = {query: k for k, query in enumerate(query_ids.tolist())}
        order = np.argsort(-queries[[row[query] for query in judged]] @ items.T)
        ranked = {
            query: item_ids[best].tolist()
            for query, best in zip(judged, order[:, :100], strict=True)
        }
        expected = reference.compute_eccv_metrics(ranked, judged)
        assert list(found[direction]) == list(ECCV_NAMES)
        for ours, theirs in ECCV_NAMES.items():
            assert found[direction][ours] == pytest.approx(100 * expected[theirs])


# Three images (7, 8, 9) with two captions each (70, 71, 80, …) stand for COCO.
SMALL = {
    "original_caption_to_image.json": {
        "70": [7], "71": [7], "80": [8], "81": [8], "90": [9], "91": [9]
    },
    "eccv_image_to_caption.json": {"7": [70, 71, 80], "9": [90, 4]},
    "eccv_caption_to_image.json": {"71": [7, 9]},
    "pm_image_to_caption.json": {"8": [80, 81, 91]},
    "pm_caption_to_image.json": {"70": [7, 8], "91": [9]},
}  # fmt: skip
IMAGES = np.eye(3, dtype=np.float32)
CAPTIONS = np.array(  # a row's numbers are its similarities to 7, 8 and 9
    [
        [0.9, 0.3, 0.5],  # 70
        [0.2, 0.8, 0.4],  # 71
        [0.6, 0.7, 0.6],  # 80
        [0.8, 0.1, 0.2],  # 81
        [0.1, 0.2, 0.3],  # 90
        [0.3, 0.5, 0.9],  # 91
    ],
    np.float32,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    np.save(tmp_path / "coco_test_ids.npy", [70, 71, 80, 81, 90, 91])
    for name, content in SMALL.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def small_metrics(folder, ids=("7", "8", "9"), **options) -> dict:
    return eccv_metrics(IMAGES, CAPTIONS, 2, ids, annotations=folder, **options)


def test_metrics_stated_by_hand(folder):
    found = small_metrics(folder, plausible=folder)
    # 7 → *70*, 81, *80*, 91, *71*, 90: hits at 1 and 3 of R = 3.
    # 9 → 91, 80, 70, 71, *90*, 81: no hit among R = 2, 4 being in no split.
    assert found["i2t"]["map_at_r"] == pytest.approx(100 * (1 + 2 / 3) / 3 / 2)
    assert found["i2t"]["rprecision"] == pytest.approx(100 * (2 / 3) / 2)
    assert found["i2t"]["r1"] == 50
    # 71 → 8, *9*, *7*: one hit at 2 of R = 2.
    assert found["t2i"]["map_at_r"] == 25
    assert found["t2i"]["rprecision"] == 50
    assert found["t2i"]["r1"] == 0
    # 8 → 71, *80*, *91*, 70, 90, *81*; 70 → *7*, 9, *8*; 91 → *9*.
    assert found["i2t"]["pmrp"] == pytest.approx(100 * 2 / 3)
    assert found["t2i"]["pmrp"] == 75


def test_pmrp_equals_the_package(folder):
    found = small_metrics(folder, plausible=folder)
    ranked = {8: [71, 80, 91, 70, 90, 81]}
    expected = reference.compute_rprecision(ranked, {8: [80, 81, 91]})
    assert found["i2t"]["pmrp"] == pytest.approx(100 * expected)


def test_images_are_found_by_id_in_any_order(folder):
    order = [2, 0, 1]
    captions = CAPTIONS.reshape(3, 2, 3)[order].reshape(6, 3)
    found = eccv_metrics(
        IMAGES[order], captions, 2, ("9", "007", "8"), folder, annotations=folder
    )
    assert found == small_metrics(folder, plausible=folder)


def test_a_data_root_with_its_own_image_numbers(folder):
    message = (
        r"COCO's test images: 3 of the split's 3 image ids are missing, such as '0'"
    )
    with pytest.raises(InputError, match=message):
        small_metrics(folder, ids=("0", "1", "2"))


def test_a_part_of_the_images(folder):
    message = r"the split lacks 1 of COCO's 3 test images, such as 8"
    with pytest.raises(InputError, match=message):
        eccv_metrics(IMAGES[:2], CAPTIONS[:4], 2, ("7", "9"), annotations=folder)


def test_another_number_of_captions(folder):
    with pytest.raises(InputError, match=r"'7' has 2 captions, but 1 in the split"):
        eccv_metrics(IMAGES, CAPTIONS[:3], 1, ("7", "8", "9"), annotations=folder)


def test_another_split():
    with pytest.raises(InputError, match=r"3 of the split's 3 image ids are missing"):
        eccv_metrics(IMAGES, CAPTIONS, 2, ["7", "8", "9"])


@pytest.mark.parametrize("name", ["coco_test_ids.npy", *SMALL])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        small_metrics(folder, plausible=folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"5": [70]}, "entry 5 is not in COCO"), ({"7": 3}, "'7' is not a list of ids"),
     ({"x": [1]}, "'x' is not a list of ids"), ({"7": []}, "'7' lists nothing")],
)  # fmt: skip
def test_a_damaged_entry(folder, entry, message):
    (folder / "eccv_image_to_caption.json").write_text(json.dumps(entry))
    with pytest.raises(InputError, match=rf"eccv_image_to_caption\.json: .*{message}"):
        small_metrics(folder)


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'vse_jax\[eccv\]'"):
        eccv_metrics(IMAGES, CAPTIONS, 2, ["7", "8", "9"])
