"""Words and the vocabularies of BiGRU models, in the published JSON layout.

    {"word2idx": {word: id}, "idx2word": {"id": word}, "idx": number of words}

The published files lack <mask>, which the augmentation needs: it gets the next free id
when a file is read, and the model one word vector more than the file has words.
"""

import collections
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_bytes, write_atomically
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data.records.buckets import root_path

_KEPT_FROM = 20_000  # captions, from which on their words are kept
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MASK = "<mask>"


def split_words(captions: Sequence[str]) -> Iterator[list[str]]:
    """Yields the words of each caption: lower case, NLTK's `word_tokenize`.

    That splits sentences with NLTK's Punkt model, then each sentence into words. Where
    the model is not installed, sentences end at . ? or ! before a space.

    The words of many captions are kept in ~/.cache/vse_jax/words: NLTK would take its
    time for them again at every start of a run.
    """
    if len(captions) < _KEPT_FROM:
        yield from _split(captions)
        return
    path = _kept_words(captions)
    if not path.exists():
        lines = [" ".join(words) for words in _split(captions)]
        with contextlib.suppress(OSError):  # then they are split again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "\n".join(lines).encode())
    else:
        lines = path.read_text(encoding="utf-8").split("\n")
    for line in lines:
        yield line.split(" ") if line else []


def _kept_words(captions: Sequence[str]) -> Path:
    """The file of the words of these captions, split by this splitter."""
    digest = hashlib.sha256("\n".join(captions).encode())
    splitter = getattr(_sentence_splitter(), "__name__", "rule")
    digest.update(f"{metadata.version('nltk')} {splitter}".encode())
    folder = Path.home() / ".cache" / "vse_jax" / "words"
    return folder / f"{digest.hexdigest()[:32]}.txt"


def _split(captions: Iterable[str]) -> Iterator[list[str]]:
    # It brings scipy along: two seconds that only BiGRU models should pay.
    from nltk.tokenize import word_tokenize  # noqa: PLC0415

    sentences = _sentence_splitter()
    for caption in captions:
        yield [
            word
            for sentence in sentences(caption.lower())
            for word in word_tokenize(sentence, preserve_line=True)
        ]


@functools.cache  # so that the log says it once
def _sentence_splitter() -> Callable[[str], list[str]]:
    from nltk.tokenize import punkt_model_available, sent_tokenize  # noqa: PLC0415

    if punkt_model_available():
        return sent_tokenize
    logging.warning(
        "NLTK's sentence model is not installed (python -m nltk.downloader punkt_tab): "
        "captions are split into sentences at . ? ! and a space"
    )
    return functools.partial(re.split, r"(?<=[.?!])\s+")


def find_vocabulary(config: Config) -> AnyPath:
    """The word vocabulary file of a config.

    config.text.vocab, else <config.data.root>/../vocab/<name>_precomp_vocab.json or
    <name>_vocab.json, where name is config.data.name.

    Raises:
        InputError: neither is there.
    """
    if config.text.vocab is not None:
        return Path(config.text.vocab)
    folder, name = vocabulary_folder(config), config.data.name
    for path in (folder / f"{name}_precomp_vocab.json", folder / f"{name}_vocab.json"):
        if path.is_file():
            return path
    raise InputError(
        f"{folder}: no {name}_precomp_vocab.json; name a vocabulary with "
        "config.text.vocab or make one with --mode=build_vocab"
    )


def vocabulary_folder(config: Config) -> AnyPath:
    """The folder vocab/ next to the data root: there the published files are."""
    return root_path(config.data.root).parent / "vocab"


def read_vocabulary(path: AnyPath) -> dict[str, int]:
    """Reads a vocabulary: word → id, <mask> included; ids are 0, 1, …

    Raises:
        InputError: no such file, not in the published layout, a special token is
            missing, or the ids have gaps.
    """
    try:
        content = json.loads(read_bytes(path))
        vocab, count = content["word2idx"], content["idx"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not JSON with word2idx and idx") from None
    if not isinstance(vocab, dict):
        raise InputError(f"{path}: word2idx is no object of word: id")
    for token in SPECIAL:
        if token not in vocab:
            raise InputError(f"{path}: no word {token} in word2idx")
    ids = list(vocab.values())
    if missing := set(range(len(vocab))).difference(i for i in ids if type(i) is int):
        raise InputError(
            f"{path}: {len(vocab)} words in word2idx, but none has the id "
            f"{min(missing)}"
        )
    if count != len(vocab):
        raise InputError(f"{path}: idx is {count}, but word2idx has {len(vocab)} words")
    return vocab if MASK in vocab else vocab | {MASK: count}


def count_words(captions: list[str], threshold: int) -> list[str]:
    """The words of a vocabulary in the order of their ids, the special ones first.

    Words that occur at least `threshold` times, the most frequent first and equally
    frequent ones in alphabetical order: the order of the captions does not matter.
    """
    counts: collections.Counter[str] = collections.Counter()
    words = split_words(captions)
    for found in progress(words, "counting words", len(captions), "captions"):
        counts.update(found)
    frequent = [word for word, count in counts.items() if count >= threshold]
    ordered = sorted(frequent, key=lambda word: (-counts[word], word))
    return [*SPECIAL, *ordered]
