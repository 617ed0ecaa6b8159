"""Caption tables as people write them: read by their one meaning, or refused."""

import pytest

from vse_jax.base.errors import InputError
from vse_jax.data.prepare.caption_table import read_caption_table
from vse_jax.data.prepare.entry import Entry


def read(tmp_path, content: str | bytes) -> list[Entry]:
    path = tmp_path / "captions.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    entries = list(read_caption_table(path))
    begin = f"{path}, line "
    return [
        entry._replace(where=int(entry.where.removeprefix(begin))) for entry in entries
    ]


TWO = [
    Entry(2, "a.jpg", "train", ["a red, wide one", "a dog"]),
    Entry(3, "b.jpg", "dev", ["two cats", "it's late"]),
]
TABLE = """image,caption1,caption2,split
a.jpg,"a red, wide one",a dog,train
b.jpg,two cats,it's late,dev
"""
SAME_TABLE = {
    "as it is": TABLE,
    "blanks after commas": TABLE.replace(",", ", ").replace("red,  ", "red, "),
    "blanks around the names": TABLE.replace("image,caption1", " image , caption1 "),
    "tabs": TABLE.replace("red, ", "red@ ").replace(",", "\t").replace("@", ","),
    "semicolons": TABLE.replace("red, ", "red@ ").replace(",", ";").replace("@", ","),
    "another case": TABLE.replace("image,caption1", "Image,CAPTION1").replace(
        ",split", ",Split"
    ),
    "splits in another case": TABLE.replace("train", "Train"),
    "byte order mark": b"\xef\xbb\xbf" + TABLE.encode(),
    "CR": TABLE.replace("\n", "\r"),
    "CR LF": TABLE.replace("\n", "\r\n"),
    "all quoted": 'image,"caption1","caption2",split\n'
    '"a.jpg","a red, wide one","a dog","train"\n'
    '"b.jpg","two cats","it\'s late","dev"\n',
    "numbered from 0": TABLE.replace("caption2", "caption0x")
    .replace("caption1", "caption0")
    .replace("caption0x", "caption1"),
    "the first without a number": TABLE.replace("caption1", "caption"),
    "no end of line": TABLE.rstrip(),
    "an index before it": "".join(
        f"{k},{line}\n" for k, line in zip(["", 0, 1], TABLE.splitlines(), strict=True)
    ),
    "columns that are not ours": "".join(
        f"{line},{more}\n"
        for line, more in zip(TABLE.splitlines(), ["note", "", "5"], strict=True)
    ),
}


@pytest.mark.parametrize("name", SAME_TABLE)
def test_one_table_in_many_forms(tmp_path, name):
    assert read(tmp_path, SAME_TABLE[name]) == TWO


def test_captions_come_in_the_order_of_their_numbers(tmp_path):
    numbers = [10, 2, 1, 3, 4, 9, 8, 7, 6, 5]
    header = ",".join(f"caption{n}" for n in numbers)
    cells = ",".join(f"view {n}" for n in numbers)
    (entry,) = read(tmp_path, f"{header},image\n{cells},a.jpg\n")
    assert entry.captions == [f"view {n}" for n in range(1, 11)]


def test_blank_lines_are_left_out_and_numbers_stay(tmp_path):
    text = "\nimage,caption\n\na.jpg,a dog\n,\n  \nb.jpg,a cat\n\n"
    assert [entry.where for entry in read(tmp_path, text)] == [4, 7]
    text = "\na.jpg\ta dog\n\nb.jpg\ta cat\n\n"
    assert [entry.where for entry in read(tmp_path, text)] == [2, 4]


def test_a_line_break_inside_quotes(tmp_path):
    text = 'image,caption\na.jpg,"a dog\nby the sea"\nb.jpg,a cat\n'
    first, second = read(tmp_path, text)
    assert " ".join(first.captions[0].split()) == "a dog by the sea"
    assert second.where == 4


def test_flickr_form(tmp_path):
    text = 'a.jpg#0\t"Stop", it says\na.jpg#1\ta sign, image\nb#2.jpg\ta cat\t\n'
    assert read(tmp_path, text) == [
        Entry(1, "a.jpg", "", ['"Stop", it says']),
        Entry(2, "a.jpg", "", ["a sign, image"]),
        Entry(3, "b#2.jpg", "", ["a cat"]),
    ]


def test_words_of_a_caption_are_no_header(tmp_path):
    assert len(read(tmp_path, "a.jpg\ta dog, image\nb.jpg\tcaption, image\n")) == 2
    assert len(read(tmp_path, "a.jpg\ttext\nb.jpg\tname\n")) == 2


HEADER = "image,caption1,caption2,split\n"
REFUSED = {
    "a name twice": (
        "image,caption,caption\na.jpg,a,b\n",
        "line 1: columns 2 and 3 are",
    ),
    "image twice": ("image,image,caption\na.jpg,b.jpg,b\n", "both called 'image'"),
    "a number twice": ("image,caption1,caption01\na.jpg,a,b\n", "columns 2 and 3"),
    "a gap": ("image,caption1,caption3\na,b,c\n", "line 1: no column 'caption2'"),
    "from the second on": ("image,caption2\na,b\n", "line 1: no column 'caption1'"),
    "an underscore": ("image,caption_1\na,b\n", "'caption_1' is neither 'caption' nor"),
    "a dot": ("image,caption,caption.1\na,b,c\n", "'caption.1' is neither"),
    "no captions": ("image,words\na,b\n", "line 1: no column 'caption'"),
    "another name of image": (
        "filename,caption\na.jpg,a dog\n",
        "line 1: no column 'image' among 'filename', 'caption'",
    ),
    "the same with tabs": ("file\tcaption\na.jpg\ta dog\n", "no column 'image' among"),
    "bars": (
        "image| comment\na.jpg| a dog\n",
        "line 1: neither 'name<TAB>caption'",
    ),
    "a blank cell": (HEADER + "a.jpg,x, ,dev\n", "line 2, column 'caption2': blank"),
    "a blank split": (HEADER + "a.jpg,x,y,\n", "line 2, column 'split': blank"),
    "no image": (HEADER + ",x,y,dev\n", "line 2, column 'image': blank"),
    "too few": (
        HEADER + "a.jpg,x\n",
        r"line 2: fields do not match the header \(2, not",
    ),
    "too many": (HEADER + "a.jpg,x,y,dev,z\n", r"line 2: fields do not .* \(5, not 4"),
    "a column without a name": (
        "image,caption,\na.jpg,a red, wide one\n",
        "line 2, column 3: 'wide one' is in a column without a name",
    ),
    "a quote in the middle": (
        HEADER + 'a.jpg,"a red,y,dev\nb.jpg,"two cats",z,dev\n',
        "line 2: ',' expected after '\"'",
    ),
    "an open quote": (HEADER + 'a.jpg,x,"y,dev\nb.jpg,x,y,dev\n', "line 2: unexpected"),
    "a zero": (
        "image,caption\na.jpg,0\n",
        "line 2, column 'caption': '0' is no caption",
    ),
    "a decimal": ("a.jpg\t12.5\n", "line 1, column 2: '12.5' is no caption"),
    "not a number": (
        "image,caption\na.jpg,NaN\n",
        "line 2, column 'caption': 'NaN' is",
    ),
    "a spreadsheet's error": ("a.jpg\t#REF!\n", "'#REF!' is no caption"),
    "no letters": ("a.jpg\t\u200b\n", "line 1, column 2: .* is no caption"),
    "two captions a line": (
        "a.jpg\ta dog\ta cat\n",
        "line 1: 2 tabs; without a header, a line is 'name<TAB>caption'",
    ),
    "a number between": ("a.jpg\t0\ta dog\n", "line 1: 2 tabs"),
    "no tab": ("a.jpg\ta dog\nb.jpg\n", "line 2: 0 tabs"),
    "no caption": ("a.jpg\ta dog\nb.jpg\t \n", "line 2, column 2: blank"),
    "no name": ("a.jpg\ta dog\n#0\ta cat\n", "line 2, column 1: no image name"),
    "one number twice": (
        "a.jpg#0\ta dog\na.jpg#0\ta cat\n",
        "line 2, column 1: a.jpg#0 is already on line 1",
    ),
    "NUL": ("a.jpg\ta dog\nb.jpg\ta\0cat\n", "line 2: a NUL byte"),
    "UTF-16": (TABLE.encode("utf-16"), "line 1: not UTF-8"),
    "nothing": ("", "line 1: neither"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_single_meaning_is_refused(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(InputError, match=rf"captions\.csv, .*{message}") as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)
