"""Lines of text fit their column."""

from vse_jax.figures.lettering import fitting, font_of, wrap


def test_wrapping():
    font = font_of(18)
    text = "a sentence of several words that is longer than one line of its column"
    lines = wrap(text, font, 200, 9)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 200 for line in lines)

    cut = wrap(text, font, 200, 2)
    assert len(cut) == 2
    assert cut[0] == lines[0]
    assert cut[1].endswith("…")
    assert font.getlength(cut[1]) <= 200

    word = "0123456789" * 5
    assert "".join(wrap(word, font, 100, 9)) == word
    assert wrap("", font, 100, 2) == [""]
    assert fitting("abc", font, 1) == "a"
