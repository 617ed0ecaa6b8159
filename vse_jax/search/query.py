"""What is looked for: sentences and pictures, added and subtracted.

    query   = SENTENCE | [sign] term {sign term}
    term    = [NUMBER "*"] (quoted | FILE)
    sign    = "+" | "-" | "−"
    quoted  = "'" … "'" | '"' … '"'

A text that does not begin with a quoted part or a FILE, sign and weight aside, is one
SENTENCE as it stands: its hyphens and apostrophes mean nothing. FILE is a name without
spaces or quotes that ends like a picture's (.jpg, .png, …); one with spaces is quoted.
A quote closes where the text ends or a sign follows: an apostrophe inside a quoted
sentence does not close it. docs/search_server.md has examples.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float, Float32

from vse_jax.base.errors import InputError

MOST_PARTS = 32
MOST_WEIGHT = 1000.0

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_ENDINGS = r"\.(?:jpe?g|png|webp|avif|tiff?|gif|hei[cf])"
_SIGN = re.compile(r"\s*([+\-−])\s*")
_WEIGHT = re.compile(_NUMBER + r"\s*\*\s*")
_FILE = re.compile(r"[^\s'\"]*[^\s'\"/]" + _ENDINGS + r"(?!\S)", re.IGNORECASE)
_IS_FILE = re.compile(r".*[^/]" + _ENDINGS, re.IGNORECASE | re.DOTALL)
# A quoted part closes before the end or the next sign; two in a row lack a sign.
_QUOTED = {
    quote: re.compile(
        rf"{quote}((?:(?!{quote}\s+{quote}).)*?){quote}(?=\s*(?:[+\-−]|$))", re.DOTALL
    )
    for quote in "'\""
}
# What tells a sum whose first sentence lacks its quotes from a sentence.
_LATER_PART = re.compile(
    rf"\s([+\-−])\s*(?:{_NUMBER}\s*\*\s*)?(?:['\"]|{_FILE.pattern})", re.IGNORECASE
)
# Tells a quote that is closed wrongly, or not at all, from 'tis and '90s.
_MEANT_AS_SUM = re.compile(r"\S'(?!\S)|\s[+\-−]\s")


class Part(NamedTuple):
    """A term of the sum: `weight` × the unit vector of a sentence or a picture file."""

    kind: Literal["sentence", "picture"]
    value: str  # the sentence, or the file's name
    weight: float = 1.0  # negative: subtracted


def parse(text: str) -> list[Part]:
    """The parts of a query.

    Raises:
        InputError: no words, or not the grammar above; names the column, from 1.
    """
    return [part for part, _, _ in _located(text)]


def rename_pictures(text: str, rename: Callable[[str], str]) -> str:
    """A query with other names for its picture files.

    Raises:
        InputError: as `parse`.
    """
    for part, start, end in reversed(_located(text)):
        if part.kind == "picture":
            text = f"{text[:start]}'{rename(part.value)}'{text[end:]}"
    return text


def _located(text: str) -> list[tuple[Part, int, int]]:
    """The parts; where each sentence or name, quotes and all, starts and ends."""
    if not _has_words(text):
        raise InputError("query: has no words")
    if _is_sum(text):
        return _parse_sum(text)
    later = _LATER_PART.search(text)
    if later:
        _fail(0, f"put the sentence before '{later[1]}' in quotes")
    return [(Part("sentence", " ".join(text.split())), 0, len(text))]


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def _is_sum(text: str) -> bool:
    """Whether the text begins with a quoted part or a file."""
    start = _skip(_WEIGHT, text, _skip(_SIGN, text, _leading(text)))
    if text[start : start + 1] == "'" and not _QUOTED["'"].match(text, start):
        return start > _leading(text) or bool(_MEANT_AS_SUM.search(text))
    return text[start : start + 1] in ("'", '"') or bool(_FILE.match(text, start))


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip())


def _skip(pattern: re.Pattern, text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _parse_sum(text: str) -> list[tuple[Part, int, int]]:
    parts: list[tuple[Part, int, int]] = []
    place, end = _leading(text), len(text.rstrip())
    while place < end:
        sign = _SIGN.match(text, place)
        if parts and not sign:
            _fail(place, "'+' or '-' expected")
        place = sign.end() if sign else place
        weight = _WEIGHT.match(text, place)
        factor = float(weight[1]) if weight else 1.0
        if factor > MOST_WEIGHT:
            _fail(place, f"a weight is at most {MOST_WEIGHT:g}")
        place = weight.end() if weight else place
        kind, value, after = _part(text, place)
        minus = sign is not None and sign[1] != "+"
        part = Part(kind, value, -factor if minus else factor)
        parts.append((part, place, after))
        if len(parts) > MOST_PARTS:
            _fail(place, f"more than {MOST_PARTS} parts")
        place = after + _leading(text[after:])
    return parts


def _part(text: str, place: int) -> tuple[Literal["sentence", "picture"], str, int]:
    """(kind, value, where it ends) of the quoted sentence or file at `place`."""
    quote = text[place : place + 1]
    if quote not in _QUOTED:
        file = _FILE.match(text, place)
        if not file:
            _fail(place, "a sentence in quotes or a picture file expected")
        return "picture", file[0], file.end()
    quoted = _QUOTED[quote].match(text, place)
    if not quoted:
        _fail(place, f"{quote} is not closed before the end or a sign")
    if _IS_FILE.fullmatch(quoted[1]):
        return "picture", quoted[1], quoted.end()
    if not _has_words(quoted[1]):
        _fail(place, "a sentence without words")
    return "sentence", " ".join(quoted[1].split()), quoted.end()


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
