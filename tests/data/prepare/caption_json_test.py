"""Karpathy's and COCO's JSON files: published ids and splits, and bad files."""

import json

import pytest

from tests.helpers.roots import config_for, contents, name_in, save_image
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare
from vse_jax.data.dataset import read_split
from vse_jax.data.prepare.caption_json import read_caption_json


def karpathy(split, number, *captions, coco=False):
    image = {"split": split, "imgid": number, "filename": f"{1000 + number}.jpg"}
    if coco:
        name = f"COCO_val2014_{500 + number:012}.jpg"
        image |= {"cocoid": 500 + number, "filepath": "val2014", "filename": name}
    return image | {"sentences": [{"raw": f" {text}\n"} for text in captions]}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_karpathys_coco(tmp_path, capsys):
    """As the published lists: restval in train, COCO's ids, all test images testall."""
    images = [
        karpathy("test", 0, "a", "b", coco=True),
        karpathy("restval", 1, "c", coco=True),
        karpathy("val", 2, "d", "e", coco=True),
        karpathy("train", 3, "f", "g\nh", coco=True),
    ]
    for image in images:
        save_image(tmp_path / "coco" / image["filepath"] / image["filename"])
    source = write(tmp_path / "dataset_coco.json", {"images": images})
    config = config_for(tmp_path / "root", source, "coco")
    config.data.images = str(tmp_path / "coco")
    prepare(config)
    assert contents(tmp_path / "root") == {
        "train_ids": ["501", "503", "503"],
        "train_caps": ["c", "f", "g h"],
        "dev_ids": ["502", "502"],
        "dev_caps": ["d", "e"],
        "testall_ids": ["500", "500"],
        "testall_caps": ["a", "b"],
        "mapping": {
            str(k): f"val2014/COCO_val2014_{k:012}.jpg" for k in (500, 501, 502, 503)
        },
    }
    assert f"{tmp_path}/root: train: 2 images, 3 captions\n" in capsys.readouterr().out
    (image,) = read_split(config, "testall").images
    assert image.is_file()


def test_images_without_their_own_folders(tmp_path):
    images = [
        karpathy(split, k, "a", coco=True)
        for k, split in enumerate(("train", "val", "test"))
    ]
    for image in images:
        save_image(tmp_path / "all" / image["filename"])
    source = write(tmp_path / "dataset_coco.json", {"images": images})
    config = config_for(tmp_path / "root", source, "coco")
    config.data.images = str(tmp_path / "all")
    prepare(config)
    assert read_split(config, "train").images[0].is_file()


def test_karpathys_flickr30k(tmp_path):
    """Ids are Karpathy's numbers of the images, as in the published id_mapping.json."""
    images = [
        karpathy(split, k, "one", "two")
        for k, split in enumerate(("train", "val", "test"))
    ]
    for image in images:
        save_image(tmp_path / image["filename"])
    write(tmp_path / "dataset_flickr30k.json", {"images": images})
    prepare(config_for(tmp_path / "root", tmp_path, "f30k"))
    found = contents(tmp_path / "root")
    assert found["train_ids"] == ["0"]  # as many captions each: listed once
    assert found["test_ids"] == ["2"]
    assert found["mapping"] == {"0": "1000.jpg", "1": "1001.jpg", "2": "1002.jpg"}
    assert (tmp_path / "root/flickr30k-images/1002.jpg").is_file()


def test_region_models_need_no_images(tmp_path):
    images = [
        karpathy(split, k, "a") for k, split in enumerate(("train", "val", "test"))
    ]
    config = config_for(
        tmp_path / "root", write(tmp_path / "dataset_f.json", {"images": images})
    )
    config.image.kind = "region"
    prepare(config)
    assert contents(tmp_path / "root")["dev_caps"] == ["a"]


def test_coco(tmp_path):
    """Ids are COCO's; without splits, a hash decides."""
    ids = {split: int(name_in(split)) for split in ("train", "dev", "test")}
    content = {
        "images": [
            {
                "id": k,
                "file_name": f"COCO_val2014_{k:012}.jpg",
                "coco_url": f"http://images.cocodataset.org/val2014/{k}.jpg",
            }
            for k in ids.values()
        ],
        "annotations": [
            {"image_id": k, "id": n, "caption": f"{n} of {k}"}
            for n in range(2)
            for k in ids.values()
        ],
    }
    for image in content["images"]:
        save_image(tmp_path / "coco/val2014" / image["file_name"])
    (tmp_path / "annotations").mkdir()
    write(tmp_path / "annotations/captions_val2014.json", content)
    config = config_for(tmp_path / "root", tmp_path / "annotations", "coco")
    config.data.images = str(tmp_path / "coco")
    prepare(config)
    found = contents(tmp_path / "root")
    for split, k in ids.items():
        assert found[f"{split}_ids"] == [str(k)]
        assert found[f"{split}_caps"] == [f"0 of {k}", f"1 of {k}"]
        assert found["mapping"][str(k)] == f"val2014/COCO_val2014_{k:012}.jpg"


IMAGE = {"id": 1, "file_name": "1.jpg"}
OTHER_KINDS = {
    "objects": (
        {"images": [IMAGE], "annotations": [{"bbox": [], "image_id": 1}]},
        "looks like COCO's annotations of objects; wanted are Karpathy's",
    ),
    "questions": (
        {"annotations": [{"question_id": 1, "answers": []}]},
        "looks like annotations with answers, question_id;",
    ),
    "without captions": ({"images": [IMAGE]}, "a list of images without captions"),
    "a mapping": ({"0": "a.jpg"}, "a mapping of names, such as id_mapping.json"),
    "a list": ([1, 2], "a JSON list of 2"),
    "another object": ({"info": {}, "x": 1}, "a JSON object with 'info', 'x'"),
    "an empty one": ({}, "a JSON object with nothing"),
    "no images": ({"images": [], "annotations": []}, "a list of images without"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_json_of_another_kind_is_called_by_its_name(tmp_path, name):
    content, message = OTHER_KINDS[name]
    path = write(tmp_path / "x.json", content)
    with pytest.raises(InputError, match=f"x.json: .*{message}") as error:
        prepare(config_for(tmp_path / "root", path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root").exists()


def changed(**fields):
    return {"images": [karpathy("val", 0, "a"), karpathy("train", 1, "b") | fields]}


NOTE = {"image_id": 1, "caption": "a"}
BAD = {
    "an unknown split": (changed(split="x"), "image 2: split 'x' is none of train, r"),
    "no name": (changed(filename=None), "image 2: no 'filename' that is a str"),
    "no id": (changed(imgid="1"), "image 2: no 'imgid' that is a int"),
    "a caption that is none": (changed(sentences=[{}]), "image 2: no 'raw' that is"),
    "out of the folder": (
        changed(filename="../../1.jpg"),
        r"image 2: '../../1.jpg' is no path below the images' folder",
    ),
    "an absolute path": (changed(filename="/etc/x.jpg"), "'/etc/x.jpg' is no path"),
    "an image without captions": (
        {"images": [IMAGE, IMAGE | {"id": 2}], "annotations": [NOTE]},
        "image 2: no annotation has a caption of id 2",
    ),
    "captions without an image": (
        {"images": [IMAGE], "annotations": [NOTE, NOTE | {"image_id": 3}]},
        "1 ids of annotations are of no image, such as 3",
    ),
    "an annotation without a caption": (
        {"images": [IMAGE], "annotations": [NOTE, {"image_id": 1}]},
        "annotation 2: no 'caption' that is a str",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_entries_are_named(tmp_path, name):
    content, message = BAD[name]
    with pytest.raises(InputError, match=f"x.json.*{message}"):
        list(read_caption_json(write(tmp_path / "x.json", content)))


def test_no_json(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"x\.json: not JSON"):
        prepare(config_for(tmp_path / "root", tmp_path / "x.json"))


def test_an_image_that_is_missing(tmp_path):
    images = [karpathy("train", 0, "a"), karpathy("val", 1, "b")]
    source = write(tmp_path / "x.json", {"images": images})
    save_image(tmp_path / "1000.jpg")
    with pytest.raises(
        InputError, match=r"1001.jpg: no such image, named at .*x.json, image 2"
    ):
        prepare(config_for(tmp_path / "root", source))
    assert not (tmp_path / "root").exists()
