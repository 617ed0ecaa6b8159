"""A person's own pictures: both forms of caption file, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare
from vse_jax.data.dataset import read_split
from vse_jax.data.images import load_image
from vse_jax.data.prepare import own_images

SPLITS = ("train", "dev", "test")


@pytest.fixture
def album(tmp_path):
    """Pictures 0.png … 5.png, two a split, and one in a sub-folder."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (4 + i, 4), "red").save(folder / f"{i}.png")
    Image.new("RGB", (4, 4), "blue").save(folder / "sub/0.png")
    return folder


@pytest.fixture
def config(tmp_path, album):
    c = draft()
    c.data.name = "mine"
    c.data.root = str(tmp_path / "root")
    c.data.source = str(album)
    return c


def write_csv(album, extra=(), header="image,caption1,caption2,split"):
    rows = [f'{i}.png,"a red, wide one",{i} again,{SPLITS[i // 2]}' for i in range(6)]
    text = "\n".join([header, *rows, *extra]) + "\n"
    (album / "captions.csv").write_text(text, encoding="utf-8")
    return album / "captions.csv"


def check(config):
    for number, name in enumerate(SPLITS):
        split = read_split(config, name)
        first = 2 * number
        assert split.image_ids[:2] == [f"{first}.png", f"{first + 1}.png"]
        assert split.captions[:2] == ["a red, wide one", f"{first} again"]
        assert load_image(split.images[0]).shape == (4, 4 + first, 3)


def test_csv_with_a_line_per_picture(config, album):
    write_csv(album)
    prepare(config)
    check(config)


def test_csv_with_a_line_per_caption(config, album):
    rows = [
        line
        for i in range(6)
        for line in (
            f'{i}.png,"a red, wide one",{SPLITS[i // 2]}',
            f"{i}.png,{i} again,{SPLITS[i // 2]}",
        )
    ]
    (album / "mine.csv").write_text("\n".join(["image,caption,split", *rows]))
    config.data.source = str(album / "mine.csv")
    prepare(config)
    check(config)


def test_flickr_form(config, album, monkeypatch):
    monkeypatch.setattr(
        own_images, "_hashed_split", lambda name: SPLITS[int(name[0]) // 2]
    )
    lines = [
        f"{i}.png#{j}\t{caption}"
        for i in range(6)
        for j, caption in enumerate(["a red, wide one", f"{i} again"])
    ]
    (album / "captions.txt").write_text("\n".join(lines) + "\n")
    prepare(config)
    check(config)


def test_hashed_split_is_eight_one_one_and_stays():
    splits = [own_images._hashed_split(f"{i}.jpg") for i in range(10_000)]
    shares = [splits.count(name) / 10_000 for name in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.015)
    assert splits[:8] == [own_images._hashed_split(f"{i}.jpg") for i in range(8)]


def test_pictures_elsewhere_keep_apart(config, album):
    write_csv(album, ["sub/0.png,blue,blue,train", f"{album}/sub/0.png,b,b,train"])
    prepare(config)
    split = read_split(config, "train")
    assert len(set(split.images)) == 4
    images = [load_image(path)[0, 0].tolist() for path in split.images]
    assert images == [[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]]


def test_prepare_again_takes_what_is_new(config, album):
    write_csv(album)
    prepare(config)
    Image.new("RGB", (9, 9)).save(album / "6.png")
    write_csv(album, ["6.png,new,newer,train"])
    prepare(config)
    assert read_split(config, "train").image_ids == ["0.png", "1.png", "6.png"]


def test_skip_leaves_a_bad_picture_out(config, album, monkeypatch):
    lines = []
    monkeypatch.setattr(
        own_images.logging, "warning", lambda text, *v: lines.append(text % v)
    )
    (album / "1.png").write_bytes(b"")
    write_csv(album)
    config.data.on_bad_image = "skip"
    prepare(config)
    assert read_split(config, "train").image_ids == ["0.png"]
    assert len(lines) == 1
    assert "1.png" in lines[0]


BAD_LINES = {
    "no such image": (
        "7.png,a,b,train",
        r"7.png: no such image, named at .*captions.csv, line 8",
    ),
    "unknown split": (
        "sub/0.png,a,b,val",
        r"line 8, column 'split': 'val' is none of train, dev",
    ),
    "two splits": (
        "0.png,a,b,dev",
        r"line 8: 0.png is in 'dev', but in 'train' at .*captions.csv, line 2",
    ),
    "empty caption": ("sub/0.png,a,,train", r"line 8, column 'caption2': blank"),
    "no name": (",a,b,train", r"line 8, column 'image': blank"),
    "no split": ("sub/0.png,a,b, ", r"line 8, column 'split': blank"),
    "too few fields": ("sub/0.png,a", r"line 8: fields do not match the header"),
    "too many fields": ("sub/0.png,a,b,train,x", r"line 8: fields do not match"),
    "open quote": ('sub/0.png,"a,b,train', r"captions.csv, line 8: "),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_is_named(config, album, name):
    line, message = BAD_LINES[name]
    write_csv(album, [line])
    with pytest.raises(InputError, match=message) as error:
        prepare(config)
    assert "\n" not in str(error.value)
    assert not (album.parent / "root").exists()  # nothing is half-written


def test_two_pictures_for_one_place(config, album):
    Image.new("RGB", (4, 4)).save(album.parent / "0.png")
    write_csv(album, ["../0.png,a,b,train"])
    with pytest.raises(
        InputError, match=r"line 8: ../0.png and 0.png would both become"
    ):
        prepare(config)


def test_changed_picture_is_taken_again(config, album, monkeypatch):
    def another_disk(source, target):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(own_images.os, "link", another_disk)
    write_csv(album)
    prepare(config)
    picture = read_split(config, "train").images[0]
    before = picture.stat().st_ino
    prepare(config)
    assert picture.stat().st_ino == before  # not copied again
    Image.new("RGB", (4, 4), "green").save(album / "0.png")
    prepare(config)
    assert load_image(picture)[0, 0].tolist() == [0, 128, 0]


def test_bad_picture_is_named_with_its_line(config, album):
    source = write_csv(album)
    (album / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=rf"3.png: .* named at {source}, line 5"):
        prepare(config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "image,text\n0.png,a\n", "no column 'caption' or 'caption1'"),
        (
            "captions.txt",
            "0.png a dog\n",
            "line 1: neither 'name<TAB>caption' nor a CSV",
        ),
        ("captions.txt", b"0.png\tcaf\xe9\n", "line 1: not UTF-8"),
        ("captions.txt", "0.png\ta dog\n", "split '.*' gets none of the 1 images"),
        ("notes.md", "", "holds no captions.csv, captions.tsv, captions.txt, results"),
    ],
)
def test_bad_file(config, album, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (album / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        prepare(config)


def test_two_tables_in_a_folder(config, album):
    write_csv(album)
    (album / "captions.txt").write_text("0.png\ta dog\n")
    with pytest.raises(
        InputError, match=r"captions.csv and captions.txt; name one with config.data"
    ):
        prepare(config)


def test_any_number_of_captions(config, album):
    lines = ["image,caption,split"]
    for i in range(6):
        lines += [f"{i}.png,view {j},{SPLITS[i // 2]}" for j in range(1 + i)]
    (album / "captions.csv").write_text("\n".join(lines))
    prepare(config)
    assert read_split(config, "train").captions_per_image.tolist() == [1, 2]
    assert read_split(config, "dev").captions_per_image.tolist() == [3, 4]
    assert read_split(config, "test").captions[4:7] == ["view 4", "view 0", "view 1"]


def test_no_source(config):
    config.data.source = "nowhere"
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        prepare(config)
    config.data.source = None
    with pytest.raises(
        InputError, match=r"config.data.source: name a file of captions"
    ):
        prepare(config)


def test_another_data_set_is_left_alone(config, album, tmp_path):
    write_csv(album)
    (tmp_path / "root/precomp").mkdir(parents=True)
    with pytest.raises(InputError, match="already holds a data set"):
        prepare(config)


def test_what_a_kill_left_is_in_nobodys_way(config, album):
    """In a container every start has the same process id."""
    write_csv(album)
    prepare(config)
    picture = Path(config.data.root) / "images" / "0.png"
    picture.rename(picture.with_name(f".0.png.{os.getpid()}"))
    prepare(config)
    check(config)
