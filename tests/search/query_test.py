import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vse_jax.base.errors import InputError
from vse_search.folders import SUFFIXES
from vse_search.query import (
    MOST_LETTERS,
    MOST_PARTS,
    Part,
    combine,
    hint,
    is_name,
    parse,
    rename_images,
)


@pytest.mark.parametrize(
    "text",
    [
        "a red car",
        "it's a well-known t-shirt",
        "black-and-white dog",
        "a dog - and a cat",
        "rock 'n' roll",
        "the boys' hats",
        "'tis the season",
        "'90s cars",
        "- people",
        "5 * 3",
        "a photo.jpg of a dog",
        "C++ - the language",
        'a sign that says "stop"',
        "naïve café, 東京",
        "a – b",
        "a dog — and a cat",
        "the boys’ hats – and the girls’",
        "’tis the season",
        "’90s cars – red ones",
        "a dog - '90s style",
        "rock – ’n’ roll",
        'a 5" - 6" pipe',
        '24" monitor',
        "-5 °C outside",
        "a thermometer at -5",
        "age 18 +1",
        "--help",
        "5* hotel",
        "un perro —negro— corre",
        "a cat -sleeping- on a sofa",
        "(a dog) in a park",
        "('70s) cars",
        "a sign that says “stop”",
        "what is .jpg for",
    ],
)
def test_a_plain_sentence_stays_one(text):
    assert parse(text) == [Part("caption", text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("'a red car'", [Part("caption", "a red car")]),
        (
            "'a red car' - 'people' + 0.5*photo.jpg",
            [
                Part("caption", "a red car"),
                Part("caption", "people", -1.0),
                Part("image", "photo.jpg", 0.5),
            ],
        ),
        (
            "2 * \"it's a dog\"−.5*'the dog's tail'",
            [
                Part("caption", "it's a dog", 2),
                Part("caption", "the dog's tail", -0.5),
            ],
        ),
        ("-'people'", [Part("caption", "people", -1)]),
        (" + 'sea'", [Part("caption", "sea")]),
        ("photo.jpg", [Part("image", "photo.jpg")]),
        ("-2*a/b-c+1.HEIC", [Part("image", "a/b-c+1.HEIC", -2)]),
        (
            "'my photo.jpg'-'x'",
            [Part("image", "my photo.jpg"), Part("caption", "x", -1)],
        ),
        ("'two  \n dogs '", [Part("caption", "two dogs")]),
        ("3.*'x'", [Part("caption", "x", 3)]),
        ("0,5*'x'-,25*'y'", [Part("caption", "x", 0.5), Part("caption", "y", -0.25)]),
        ("2 × ‘x’", [Part("caption", "x", 2)]),
        ("'rock 'n' roll'", [Part("caption", "rock 'n' roll")]),
        ("‘the dog’s tail’", [Part("caption", "the dog’s tail")]),
        ("\ufeff'x'\u200b", [Part("caption", "x")]),
        ("'Damenmode und -schuhe'", [Part("caption", "Damenmode und -schuhe")]),
        ("IMG 1040.JPG", [Part("image", "IMG 1040.JPG")]),
        ("dog’s ball (2).Jpeg", [Part("image", "dog’s ball (2).Jpeg")]),
        ("‘dog’s ball.jpg’", [Part("image", "dog’s ball.jpg")]),
        ("photo.bmp", [Part("image", "photo.bmp")]),
        (
            "IMG_1.CR2 – 'x'",
            [Part("image", "IMG_1.CR2"), Part("caption", "x", -1)],
        ),
    ],
)
def test_a_sum_is_taken_apart(text, parts):
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "query: has no words"),
        (" ?!… 🐶", "query: has no words"),
        ("'dog' 'cat'", "query, column 1: ' is not closed before the end or a sign"),
        ("'dog' - cat", "query, column 9: a caption in quotes or an image"),
        ("'dog' +", "query, column 8: a caption in quotes or an image"),
        ("'dog' + ''", "query, column 9: a caption without words"),
        ("'dog' + 'cat", "query, column 9: ' is not closed"),
        ('"dog', 'query, column 1: " is not closed'),
        ("'a dog + photo.jpg", "query, column 1: ' is not closed"),
        ("photo.jpg of a dog", r"query, column 11: '\+' or '-' expected"),
        ("1001*'dog'", "query, column 1: a weight is at most 1000"),
        ("9" * 400 + "*'dog'", "query, column 1: a weight is at most 1000"),
        ("1,000*'dog'", "query, column 1: 1,000 may be 1000 or 1.000"),
        (
            "'dog' -people",
            "query, column 8: a caption in quotes or .*: write 'people'",
        ),
        ("'dog' and 'cat'", r"query, column 6: '\+' or '-' expected"),
        ("“dog”, “cat”", r"query, column 6: '\+' or '-' expected"),
        ("('dog')", "query, column 1: there are no parentheses"),
        ("'a' - ('b' + 'c')", "query, column 7: there are no parentheses"),
        ("½*'snow'", r"query, column 2: before '\*' stands a number"),
        ("'snow'*0.5", "query, column 7: a weight stands before its part"),
        ("a car – ‘people’", "query, column 1: put the caption before '-' in q"),
        ("a" * (MOST_LETTERS + 1), "query: longer than 8,192 characters"),
        ("a red car - 'people'", "query, column 1: put the caption before '-' in q"),
        ("a dog + 0.5*b.png", r"query, column 1: put the caption before '\+' in q"),
        (
            " + ".join(["'dog'"] * 33),
            f"query, column 257: more than {MOST_PARTS} parts",
        ),
    ],
)
def test_errors_name_the_place(text, error):
    with pytest.raises(InputError, match=f"^{error}"):
        parse(text)


@pytest.mark.parametrize("dash", "-‐‑‒–—―−﹣－")
@pytest.mark.parametrize(
    "quotes",
    ["''", '""', "‘’", "’’", "‚‘", "“”", "””", "„“", "«»", "»«", "‹›", "`´", "「」"],
)
@pytest.mark.parametrize("space", ["", " ", "\u00a0", "\u202f"])
def test_every_dash_and_quote_means_what_its_plain_one_does(dash, quotes, space):
    def quoted(words):
        return f"{quotes[0]}{space}{words}{space}{quotes[1]}"

    text = f"{quoted('a red car')}{space}{dash}{space}{quoted('people')}"
    assert parse(text) == [
        Part("caption", "a red car"),
        Part("caption", "people", -1),
    ]


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_indexed_is_a_pictures(suffix, change):
    name = f"a{change(suffix)}"
    assert is_name(name)
    assert parse(name) == [Part("image", name)]
    assert parse(f"{name}+'x'")[0] == Part("image", name)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("red car -people", "'red car' - 'people'"),
        ("red car –people", "'red car' - 'people'"),
        ("red car -people -black dogs", "'red car' - 'people' - 'black dogs'"),
        ("red car +snow", "'red car' + 'snow'"),
        ("-people", "- 'people'"),
        ("red car + 0,5*snow", "'red car' + 0,5*'snow'"),
        ("red car - 2 * snow", "'red car' - 2*'snow'"),
        ("2*dog", "2*'dog'"),
    ],
)
def test_what_looks_like_a_part_is_an_error_that_says_how_to_write_it(text, written):
    with pytest.raises(InputError, match=r"^query, column") as error:
        parse(text)
    assert f"write {written}, or" in str(error.value)
    assert all(part.kind == "caption" for part in parse(written))


@pytest.mark.parametrize(
    ("text", "hinted"),
    [
        ("red car - people", "'red car' - 'people'"),
        ("red car + snow", "'red car' + 'snow'"),
        ("red car – people - dogs", "'red car' - 'people' - 'dogs'"),
        ("a dog - and the cat's", "'…' - '…'"),
        ("red car", None),
        ("black-and-white", None),
        ("- people", None),
        ("'red car' - 'people'", None),
        ("photo - copy.jpg", None),
    ],
)
def test_a_sign_that_may_have_been_meant_is_told(text, hinted):
    told = hint(text)
    assert told is None if hinted is None else hinted in told


@given(st.text(alphabet="ab1 '’“\"+-–−*,.(jpg/\n\u200b"))
def test_any_text_is_parts_or_an_input_error(text):
    try:
        parts = parse(text)
    except InputError:
        return
    assert parts
    assert all(part.value.strip() and abs(part.weight) <= 1000 for part in parts)


@given(st.text())
def test_no_text_is_a_bug(text):
    try:
        parts = parse(text)
    except InputError:
        return
    assert all(part.value.strip() for part in parts)
    assert hint(text) is None or len(parts) == 1


LETTERS = st.text("abcxyz", min_size=1)


@given(st.lists(LETTERS, min_size=1), st.sampled_from(["'", "’", "-", "‑"]))
def test_hyphens_and_apostrophes_inside_words_mean_nothing(words, mark):
    text = " ".join(mark.join(("x", word, "x")) for word in words)
    assert parse(text) == [Part("caption", text)]
    assert hint(text) is None


WORDS = st.text(alphabet="abc ", min_size=1).map(lambda text: f"x{text.strip()}")
WEIGHTS = st.integers(-4000, 4000).map(lambda quarters: quarters / 4)


@given(st.lists(st.tuples(WORDS, WEIGHTS), min_size=1, max_size=MOST_PARTS))
def test_what_is_written_as_the_grammar_says_is_read_back(items):
    text = " ".join(f"{'-' if w < 0 else '+'} {abs(w)} * '{s}'" for s, w in items)
    expected = [Part("caption", " ".join(s.split()), w) for s, w in items]
    assert parse(text) == expected


def test_the_vector_of_a_sum_by_hand():
    vectors = [np.float32([2, 0]), np.float32([0, 0.5])]  # lengths do not matter
    vector, factors = combine([3.0, -4.0], vectors)
    np.testing.assert_allclose(vector, [0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(factors, [0.6, -0.8], rtol=1e-6)


@given(
    arrays(np.float32, (3, 4), elements=st.floats(0.125, 1, width=32)),
    st.lists(st.floats(-10, 10), min_size=3, max_size=3),
)
def test_the_factors_add_the_units_up_to_length_1(vectors, weights):
    try:
        vector, factors = combine(weights, list(vectors))
    except InputError:
        return
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
    scale = max(map(abs, factors))
    np.testing.assert_allclose(factors @ units, vector, atol=1e-5 * scale)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0]])
def test_parts_that_cancel_out_are_an_error(weights):
    same = np.float32([0.3, 0.4])
    with pytest.raises(InputError, match="cancel out"):
        combine(weights, [same, same])


def test_pictures_are_renamed_in_place():
    text = "'the \"b.png\" sign' -'my a.jpg'-2*'x' + .5*c/b.png"
    renamed = rename_images(text, lambda name: f"{len(name)}.jpg")
    assert renamed == "'the \"b.png\" sign' -'8.jpg'-2*'x' + .5*'7.jpg'"
    assert rename_images("a dog, b.png,", str.upper) == "a dog, b.png,"
    assert rename_images("a dog, b.png", str.upper) == "'A DOG, B.PNG'"
    kept = rename_images("a.png - b.png", {"b.png": "c.png"}.get)
    assert kept == "a.png - 'c.png'"
