"""What is looked for: captions and images, added and subtracted.

    query   = CAPTION | NAME | [sign] term {sign term}
    term    = [NUMBER "*"] (quoted | FILE)
    sign    = "+" | "-"
    quoted  = "'" … "'" | '"' … '"'

Each kind of dash is a sign and each kind of quote a quote, for keyboards and word
processors make one of the other. A NUMBER has a decimal point or comma.

A text that does not begin with a quoted part or a FILE, sign and weight aside, is one
CAPTION as it stands: its hyphens and apostrophes mean nothing. What in it looks like a
part of a sum and is none (red car -people) is an error that says how to write it.
FILE is a name without spaces or quotes that ends like an image's (.jpg, .png, …); one
with spaces is quoted, or is all of the text (NAME). A quote closes where the text ends
or a sign follows: an apostrophe inside a quoted caption does not close it.
docs/search.md has examples.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float, Float32

from vse_jax import InputError

MOST_LETTERS = 8_192
MOST_PARTS = 32
MOST_WEIGHT = 1000.0

# What keyboards and word processors make of - + * ' and ", and what cannot be seen. A
# sign stands for one sign, so that places stay the same.
_UNSEEN = "\u200b\u200e\u200f\u2060\ufeff"
_MARKS = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹣－", "-")
    | dict.fromkeys("﹢＋", "+")
    | dict.fromkeys("×∗＊", "*")
    | dict.fromkeys("‘’‚‛‹›`´′＇", "'")
    | dict.fromkeys("“”„‟«»″＂「」『』", '"')
    | dict.fromkeys(_UNSEEN, " ")
)
# Ends of names that mean an image, whether or not this program reads its format.
_ENDINGS = (
    r"\.(?:jpe?g?|jfif|jif|pjpe?g|pjp|jp2|j2k|jpx|jxl|a?png|webp|avifs?|tiff?|gif|bmp|"
    r"dib|hei[cf]s?|hif|ico|svg|psd|p[bgnp]m|dng|cr[23]|nef|arw|orf|rw2|raf|pef|srw)"
)

_NUMBER = r"(?:\d+(?:[.,]\d*)?|[.,]\d+)"
_SIGN_AND_WEIGHT = re.compile(rf"\s*(?:([+\-])\s*)?(?:({_NUMBER})\s*\*\s*)?")
_FILE = re.compile(
    rf"[^\s'\"]*[^\s'\"/]{_ENDINGS}(?=\s|$|[+\-]\s*(?:{_NUMBER}\s*\*\s*)?['\"])",
    re.IGNORECASE,
)
_NAME = re.compile(rf".*[^/]{_ENDINGS}", re.IGNORECASE | re.DOTALL)
# A quoted part closes before the end or the next sign; two in a row lack a sign.
_QUOTED = {
    quote: re.compile(
        rf"{quote}((?:(?!{quote}\s+{quote}).)*?){quote}(?=\s*(?:[+\-]|$))", re.DOTALL
    )
    for quote in "'\""
}
# An apostrophe in front of a word: '90s, 'tis, rock 'n' roll.
_ELIDED = r"'(?:\d\ds?|n'|tis|twas|em|til|cause|round)(?!\w)"
_ELISION = re.compile(_ELIDED, re.IGNORECASE)
# A quote that closes, and later one that opens: two parts without a sign between them.
_NEXT_QUOTED = {
    quote: re.compile(
        rf"\S{quote}(?!\w).*?(?<!\w)(?!{_ELIDED}){quote}\w", re.IGNORECASE | re.DOTALL
    )
    for quote in _QUOTED
}
# Tells a quote that is closed wrongly, or not at all, from such an apostrophe.
_MEANT_AS_SUM = re.compile(r"\S'(?!\S)|\s[+\-]\s")
# What tells a sum whose first caption lacks its quotes from a caption …
_LATER_PART = re.compile(
    rf"\s([+\-])\s*(?:{_NUMBER}\s*\*\s*)?(?:(?P<quote>['\"])|{_FILE.pattern})",
    re.IGNORECASE,
)
# … and one in which no caption has quotes: a sign right before a word, or a weight.
_LETTER = r"(?=[^\W\d_])"
_BARE_PART = re.compile(
    rf"(?:(?<!\S)[+\-](?:\s*{_NUMBER}\s*\*\s*)?{_LETTER}|^\s*{_NUMBER}\*{_LETTER})"
)
_ASIDE_ENDS = re.compile(r"\w-(?!\w)")  # a dog -- no: 'a dog -a black one- runs'
_NO_PARENTHESES = "there are no parentheses; give each part its own sign and weight"
_SPACED_SIGN = re.compile(r"(?<=\S)\s+[+\-]\s+(?=\S)")


class Part(NamedTuple):
    """A term of the sum: `weight` × the unit vector of a caption or an image file."""

    kind: Literal["caption", "image"]
    value: str  # the caption, or the file's name
    weight: float = 1.0  # negative: subtracted


def parse(text: str, is_image: Callable[[str], bool] = lambda _: False) -> list[Part]:
    """The parts of a query.

    Args:
        text: the query.
        is_image: whether all of the text, which ends like an image's name, is the
            name of one; then what looks like signs and quotes is part of the name.

    Raises:
        InputError: no words, too long, or not the grammar above; names the column,
            from 1.
    """
    return [part for part, _, _ in _located(text, is_image)]


def is_name(text: str) -> bool:
    """Whether all of a text may be an image file's name: it ends like one."""
    return bool(_NAME.fullmatch(text.strip()))


def hint(text: str) -> str | None:
    """What to write if a sign inside a caption was meant to add or to subtract; None
    where no part of the query can have been meant so."""
    marks = text.translate(_MARKS)
    signs = list(_SPACED_SIGN.finditer(marks))
    if not signs or _is_sum(marks) or is_name(marks):
        return None
    return f"searched as one caption; to add or subtract, write {_sum_of(text, signs)}"


def rename_images(
    text: str,
    rename: Callable[[str], str | None],
    is_image: Callable[[str], bool] = lambda _: False,
) -> str:
    """A query with other names for its image files; None: that one stays.

    Raises:
        InputError: as `parse`.
    """
    for part, start, end in reversed(_located(text, is_image)):
        if part.kind == "image" and (name := rename(part.value)) is not None:
            text = f"{text[:start]}'{name}'{text[end:]}"
    return text


def _located(text: str, is_image: Callable[[str], bool]) -> list[tuple[Part, int, int]]:
    """The parts; where each caption or name, quotes and all, starts and ends."""
    if not _has_words(text):
        raise InputError("query: has no words")
    if len(text) > MOST_LETTERS:
        raise InputError(f"query: longer than {MOST_LETTERS:,} characters")
    if is_name(text) and is_image(text.strip()):
        return [(Part("image", text.strip()), 0, len(text))]
    marks = text.translate(_MARKS)
    if _is_sum(marks):
        return _parse_sum(text, marks)
    for later in _LATER_PART.finditer(marks):
        quote = later.start("quote")
        if later["quote"] == "'" and _is_apostrophe(marks, quote):
            continue
        _fail(0, f"put the caption before '{later[1]}' in quotes")
    if is_name(marks):
        return [(Part("image", text.strip()), 0, len(text))]
    _check_no_bare_parts(text, marks)
    return [(Part("caption", _words(text)), 0, len(text))]


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def _words(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError("query: not UTF-8")
    return " ".join(text.translate(dict.fromkeys(map(ord, _UNSEEN))).split())


def _is_sum(marks: str) -> bool:
    """Whether the text begins with a quoted part or a file."""
    leading, start = _leading(marks), _start(marks, 0).end()
    if marks[start : start + 1] == "'" and not _QUOTED["'"].match(marks, start):
        if start == leading and _ELISION.match(marks, start):
            return False
        return start > leading or bool(_MEANT_AS_SUM.search(marks))
    return marks[start : start + 1] in ("'", '"') or bool(_FILE.match(marks, start))


def _is_apostrophe(marks: str, place: int) -> bool:
    """Whether a single quote is one of those that stand in front of a word."""
    closed = _QUOTED["'"].match(marks, place)
    return closed is None and _ELISION.match(marks, place) is not None


def _check_no_bare_parts(text: str, marks: str) -> None:
    """Raises InputError where a caption looks like a sum that lacks its quotes."""
    bare = _BARE_PART.finditer(marks)
    found = [part for part in bare if not _ASIDE_ENDS.search(marks, part.end())]
    if found:
        sign = found[0][0].strip()
        _fail(
            found[0].start() + _leading(found[0][0]),
            f"'{sign}' before a word without quotes; write {_sum_of(text, found)}, or "
            "put all of it in quotes if it is one caption",
        )
    start = _leading(marks)
    if re.match(r"\(\s*(?:\"|'(?!\d\d))", marks[start:]):
        _fail(start, _NO_PARENTHESES)
    for times in re.finditer(r"\*\s*(?=['\"])", marks):
        if _QUOTED[marks[times.end()]].match(marks, times.end()):
            _fail(times.start(), "before '*' stands a number, such as 0.5")
    if part := re.match(r"\s*'.*'\s*(?=\*)", marks, re.DOTALL):
        _fail(part.end(), "a weight stands before its part, such as 0.5*'snow'")


def _sum_of(text: str, signs: Sequence[re.Match]) -> str:
    """The text as a sum: cut at these signs, each part in quotes."""
    first = text[: signs[0].start()].strip()
    written = [f"'{first}'"] if _has_words(first) else []
    ends = [sign.start() for sign in signs[1:]] + [len(text)]
    for sign, end in zip(signs, ends, strict=True):
        weight = sign[0].strip().lstrip("+- ").replace(" ", "")
        written += [s for s in "+-" if s in sign[0]]
        written.append(f"{weight}'{text[sign.end() : end].strip()}'")
    whole = " ".join(written)
    has_quotes = any(quote in text.translate(_MARKS) for quote in _QUOTED)
    return "'…' - '…'" if has_quotes or len(whole) > 120 else whole


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip())


def _start(marks: str, place: int) -> re.Match:
    """The sign and the weight of the part at `place`, both of which may be missing."""
    found = _SIGN_AND_WEIGHT.match(marks, place)
    assert found
    return found


def _parse_sum(text: str, marks: str) -> list[tuple[Part, int, int]]:
    parts: list[tuple[Part, int, int]] = []
    place, end = _leading(marks), len(marks.rstrip())
    while place < end:
        start = _start(marks, place)
        sign, number = start.groups()
        if parts and not sign:
            _fail(place, "'+' or '-' expected")
        weight = _weight(number, start.start(2)) if number else 1.0
        place = start.end()
        kind, value, after = _part(text, marks, place)
        part = Part(kind, value, -weight if sign == "-" else weight)
        parts.append((part, place, after))
        if len(parts) > MOST_PARTS:
            _fail(place, f"more than {MOST_PARTS} parts")
        place = after + _leading(marks[after:])
    return parts


def _weight(digits: str, place: int) -> float:
    if re.fullmatch(r"[1-9]\d*,\d{3}", digits):
        _fail(
            place,
            f"{digits} may be {digits.replace(',', '')} or "
            f"{digits.replace(',', '.')}; write that",
        )
    number = float(digits.replace(",", "."))
    if number > MOST_WEIGHT:
        _fail(place, f"a weight is at most {MOST_WEIGHT:g}")
    return number


def _part(
    text: str, marks: str, place: int
) -> tuple[Literal["caption", "image"], str, int]:
    """(kind, value, where it ends) of the quoted caption or file at `place`."""
    quote = marks[place : place + 1]
    if quote not in _QUOTED:
        file = _FILE.match(marks, place)
        if not file:
            if quote == "(":
                _fail(place, _NO_PARENTHESES)
            bare = re.match(r"[^'\"]*?(?=\s+[+\-]|$)", marks[place:])
            end = place + bare.end() if bare else place
            meant = f": write '{text[place:end].strip()}'" if end > place else ""
            _fail(place, f"a caption in quotes or an image file expected{meant}")
        return "image", text[place : file.end()], file.end()
    quoted = _QUOTED[quote].match(marks, place)
    if not quoted:
        _fail(place, f"{quote} is not closed before the end or a sign")
    inside = text[slice(*quoted.span(1))]
    if again := _NEXT_QUOTED[quote].search(marks, *quoted.span()):
        _fail(again.start() + 2, "'+' or '-' expected")
    if is_name(inside):
        return "image", inside.strip(), quoted.end()
    if not _has_words(inside):
        _fail(place, "a caption without words")
    return "caption", _words(inside), quoted.end()


def _fail(place: int, reason: str) -> NoReturn:
    raise InputError(f"query, column {place + 1}: {reason}")


def combine(
    weights: Sequence[float], vectors: Sequence[Float[np.ndarray, " dim"]]
) -> tuple[Float32[np.ndarray, " dim"], list[float]]:
    """The query's vector, of length 1, and each part's factor in it.

    It is Σ factor · vector / its length over the parts; the factors are the weights,
    all scaled alike.

    Raises:
        InputError: the parts cancel out.
    """
    units = np.stack(vectors).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    total = np.asarray(weights) @ units
    length = float(np.linalg.norm(total))
    if not length > 1e-5 * sum(map(abs, weights)):
        raise InputError("query: its parts cancel out")
    return (total / length).astype(np.float32), [w / length for w in weights]
