"""Which reader reads a source, and files that belong together."""

import pytest

from tests.helpers.roots import config_for, contents, name_in, save_image
from vse_jax.base.errors import InputError
from vse_jax.commands.prepare import prepare


def write_flickr(folder, form: str, name: str) -> list[str]:
    names = [name_in(split, "{}.jpg") for split in ("train", "dev", "test")]
    for image in names:
        save_image(folder / image)
    lines = ["image_name| comment_number| comment"] if "|" in form else []
    lines += [
        form.format(image, number, f'"A {word}" , it says .')
        for image in names
        for number, word in enumerate(("dog", "cat"))
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    return names


@pytest.mark.parametrize(
    ("name", "form"),
    [("results.csv", "{}| {}| {}"), ("results_20130124.token", "{}#{}\t{}")],
)
def test_flickr30ks_own_files(tmp_path, name, form):
    images = write_flickr(tmp_path / "data", form, name)
    prepare(config_for(tmp_path / "root", tmp_path / "data"))
    found = contents(tmp_path / "root")
    assert found["train_ids"] == images[:1]
    assert found["train_caps"] == ['"A dog" , it says .', '"A cat" , it says .']


def test_the_line_of_results_csv_that_lacks_a_delimiter(tmp_path):
    images = write_flickr(tmp_path / "data", "{}| {}| {}", "results.csv")
    path = tmp_path / "data/results.csv"
    path.write_text(path.read_text() + f"{images[0]}| 4   A dog runs across it .\n")
    prepare(config_for(tmp_path / "root", path))
    assert contents(tmp_path / "root")["train_caps"][2] == "A dog runs across it ."


def test_two_kinds_in_a_folder(tmp_path):
    for name in ("captions.csv", "dataset_coco.json"):
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"holds captions.csv and dataset_coco.json; name one with"
    ):
        prepare(config_for(tmp_path / "root", tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04", "a .npz or another zip archive, which is not read"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\xff\xd8\xff\xe0", "an image"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=f"x: {message}"):
        prepare(config_for(tmp_path / "root", tmp_path / "x"))


def test_a_url_of_an_unknown_kind(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.source: hdfs://a/b: neither"):
        prepare(config_for(tmp_path / "root", "hdfs://a/b"))
