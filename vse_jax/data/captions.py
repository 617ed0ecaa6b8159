"""Captions as token ids: BERT's WordPieces, or the words of a BiGRU's vocabulary."""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int, Int32
from ml_collections import ConfigDict
from tokenizers import models, normalizers, pre_tokenizers, processors

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_lines
from vse_jax.base.progress import progress
from vse_jax.data.vocabulary import MASK, read_vocabulary, split_words
from vse_jax.data.vocabulary_files import find_vocab

_CHUNK = 4096  # captions tokenised at once, by all cores


@dataclass(frozen=True)
class CaptionTokens:
    """All captions of a split in flat arrays: small to send to worker processes.

    Caption i is ids[offsets[i] : offsets[i + 1]], [CLS] and [SEP] or <start> and <end>
    included. `words` numbers the word of its caption that each token is a piece of, −1
    for [CLS] and [SEP], which augmentation spares.
    """

    ids: Int32[np.ndarray, " tokens"]
    words: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " captions_plus_one"]
    mask_id: int
    vocab_size: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " captions"]:
        return np.diff(self.offsets)

    def span(self, caption: int) -> slice:
        """Where the caption lies in the flat arrays."""
        return slice(self.offsets[caption], self.offsets[caption + 1])


@runtime_checkable
class Tokenizer(Protocol):
    """Makes token ids of captions; reads its vocabulary once."""

    vocab_size: int
    ends: tuple[str, str]  # what its tokens before and behind a caption are called

    def __call__(self, captions: Sequence[str]) -> CaptionTokens: ...

    def words(self, caption: str) -> list[str]:
        """The words that `CaptionTokens.words` numbers, from 0."""
        ...

    def as_json(self) -> str:
        """What a program without this package needs to make the same token ids.

        A tokenizer.json of the library tokenizers, which cuts and fills up, too; or the
        ids of words, {word: id}.
        """
        ...


def caption_tokenizer(config: ConfigDict) -> Tokenizer:
    """What the config's text tower wants captions to be tokenised with.

    Longer captions than `longest_caption` are cut.

    Raises:
        InputError: no vocabulary, or one that does not fit config.text.vocab_size.
    """
    longest = longest_caption(config)
    vocab_file = find_vocab(config)
    model_size = config.text.vocab_size
    tokenizer: Tokenizer
    if config.text.kind == "siglip":
        tokenizer = FileTokenizer(vocab_file, longest)
        fits = tokenizer.vocab_size == model_size
        if fits and tokenizer.pad_id != config.text.pad_id:
            raise InputError(
                f"{vocab_file}: fills up with token {tokenizer.pad_id}, but "
                f"config.text.pad_id is {config.text.pad_id}"
            )
    elif config.text.kind == "bigru":
        tokenizer = WordTokenizer(vocab_file, longest)
        # With a smaller vocabulary, too, the ids are those of other words.
        fits = tokenizer.vocab_size == model_size
    else:
        tokenizer = WordPieceTokenizer(vocab_file, longest)
        fits = tokenizer.vocab_size <= model_size
    if not fits:
        raise InputError(
            f"{vocab_file}: {tokenizer.vocab_size} tokens, but config.text.vocab_size "
            f"is {model_size}"
        )
    return tokenizer


def longest_caption(config: ConfigDict) -> int:
    """The tokens that a caption keeps: data.max_tokens, or all of the positions."""
    if config.text.kind in ("bert", "siglip"):
        return min(config.data.max_tokens, config.text.max_positions)
    return config.data.max_tokens


def padded_lengths(config: ConfigDict) -> tuple[int, ...]:
    """The lengths that batches of captions are padded to: a program each.

    Those of config.data.token_buckets that are needed, the longest caption's last.
    """
    longest = longest_caption(config)
    if config.text.kind == "siglip" and not config.text.cache_features:
        return (longest,)  # the tower fills all of them up
    shorter = {size for size in config.data.token_buckets if size < longest}
    return (*sorted(shorter), longest)


class WordPieceTokenizer:
    """BERT's WordPieces, from a vocabulary file with one token a line.

    A caption may be empty ([CLS] [SEP]); one of more than `max_tokens` tokens is cut,
    keeping [SEP], and the number of those is logged once.

    Raises:
        InputError: `vocab_file` is missing or is no BERT vocabulary.
    """

    ends = ("[CLS]", "[SEP]")

    def __init__(self, vocab_file: AnyPath, max_tokens: int):
        lines = read_lines(vocab_file)
        self._vocab = {token: i for i, token in enumerate(lines)}
        for token in ("[CLS]", "[SEP]", "[UNK]", "[MASK]"):
            if token not in self._vocab:
                raise InputError(
                    f"{vocab_file}: no token {token}: not a BERT vocabulary"
                )
        self._pieces = tokenizers.Tokenizer(
            models.WordPiece(vocab=self._vocab, unk_token="[UNK]")
        )
        self._pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._max_tokens = max_tokens
        self.vocab_size = len(lines)

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        # [CLS] and [SEP] are put in by hand: a tokenizer that knows them would also
        # recognise them inside a caption's text.
        encodings = itertools.chain.from_iterable(
            self._pieces.encode_batch(captions[start : start + _CHUNK])
            for start in range(0, len(captions), _CHUNK)
        )
        rows = ((encoding.ids, encoding.word_ids) for encoding in encodings)
        ends = self._vocab["[CLS]"], self._vocab["[SEP]"]
        table = _table(rows, len(captions), ends, self._max_tokens)
        return CaptionTokens(*table, self._vocab["[MASK]"], self.vocab_size)

    def words(self, caption: str) -> list[str]:
        """The words that are cut into pieces, without [CLS] and [SEP]."""
        text = self._pieces.normalizer.normalize_str(caption)
        return [word for word, _ in self._pieces.pre_tokenizer.pre_tokenize_str(text)]

    def as_json(self) -> str:
        """A tokenizer.json; no special token is recognised inside a caption's text."""
        first, last = self.ends
        pieces = tokenizers.Tokenizer.from_str(self._pieces.to_str())
        pieces.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            special_tokens=[(token, self._vocab[token]) for token in self.ends],
        )
        pieces.enable_truncation(self._max_tokens)
        pieces.enable_padding(length=self._max_tokens)
        return pieces.to_str()


class FileTokenizer:
    """A SentencePiece model as a tokenizer.json: SigLIP's. Captions are lower-cased.

    A caption may be empty (only what the file puts around it); one of more than
    `max_tokens` tokens is cut, keeping the last of those.

    Raises:
        InputError: the file is missing or holds no tokenizer, or captions are padded in
            front (a tokenizer_config.json beside it says that).
    """

    ends = ("<eos>", "<eos>")

    def __init__(self, file: AnyPath, max_tokens: int):
        try:
            content = Path(os.fspath(file)).read_text(encoding="utf-8")
            self._pieces = tokenizers.Tokenizer.from_str(content)
            about = Path(os.fspath(file)).with_name("tokenizer_config.json")
            said = json.loads(about.read_text("utf-8")) if about.is_file() else {}
        except Exception as error:  # tokenizers raises plain Exceptions
            raise InputError(f"{file}: no tokenizer ({error})") from None
        if said.get("padding_side", "right") != "right":
            raise InputError(f"{about}: padding_side is not 'right'")
        pad = said.get("pad_token") or "<pad>"
        pad = pad["content"] if isinstance(pad, dict) else pad
        pad_id = self._pieces.token_to_id(pad)
        if pad_id is None:
            raise InputError(f"{file}: no token {pad} to fill captions up")
        self.pad_id: int = pad_id
        self.vocab_size: int = self._pieces.get_vocab_size()
        lower = normalizers.Lowercase()
        before = self._pieces.normalizer
        steps = [lower] if before is None else [lower, before]
        self._pieces.normalizer = normalizers.Sequence(steps)
        self._pieces.no_padding()
        self._pieces.no_truncation()
        self._max_tokens = max_tokens

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        ids: list[int] = []
        words: list[int] = []
        offsets = [0]
        cut = 0
        for start in range(0, len(captions), _CHUNK):
            for encoding in self._pieces.encode_batch(captions[start : start + _CHUNK]):
                kept = self._kept(encoding)
                cut += len(kept) < len(encoding.ids)
                numbers = _piece_words(encoding)
                ids += [encoding.ids[place] for place in kept]
                words += [numbers[place] for place in kept]
                offsets.append(len(ids))
        _warn_of_cuts(cut, len(captions), self._max_tokens)
        mask_id = self._pieces.token_to_id("<mask>")
        return CaptionTokens(
            np.array(ids, np.int32),
            np.array(words, np.int16),
            np.array(offsets, np.int64),
            self.pad_id if mask_id is None else mask_id,
            self.vocab_size,
        )

    def words(self, caption: str) -> list[str]:
        """What is written where the pieces of a word come from."""
        encoding = self._pieces.encode(caption)
        spans: dict[int, tuple[int, int]] = {}
        for number, (start, end) in zip(
            _piece_words(encoding), encoding.offsets, strict=True
        ):
            if number >= 0:
                spans[number] = spans.get(number, (start, end))[0], end
        return [caption[start:end].strip() for start, end in spans.values()]

    def as_json(self) -> str:
        """A tokenizer.json that lower-cases, cuts and fills up by itself."""
        pieces = tokenizers.Tokenizer.from_str(self._pieces.to_str())
        pieces.enable_truncation(self._max_tokens)
        pad = pieces.id_to_token(self.pad_id)
        pieces.enable_padding(
            length=self._max_tokens, pad_id=self.pad_id, pad_token=pad
        )
        return pieces.to_str()

    def _kept(self, encoding: tokenizers.Encoding) -> list[int]:
        """The places of the tokens that a caption keeps."""
        size = len(encoding.ids)
        ends = (
            size
            - 1
            - max(
                (i for i, s in enumerate(encoding.special_tokens_mask) if not s),
                default=-1,
            )
        )
        if size <= self._max_tokens:
            return list(range(size))
        return [*range(self._max_tokens - ends), *range(size - ends, size)]


def _piece_words(encoding: tokenizers.Encoding) -> list[int]:
    """The word that each token is a piece of, from 0; −1 for what is put around them.

    SentencePiece's pieces begin with ▁ where a word begins.
    """
    numbers = []
    word = -1
    for token, special in zip(
        encoding.tokens, encoding.special_tokens_mask, strict=True
    ):
        if not special and (word < 0 or token.startswith("▁")):
            word += 1
        numbers.append(-1 if special else word)
    return numbers


class WordTokenizer:
    """The words of a BiGRU's vocabulary (see vocabulary.py); unknown ones are <unk>.

    A caption may be empty (<start> <end>); one of more than `max_tokens` tokens is cut,
    keeping <end>, and the number of those is logged once. So is the number of captions
    without any known word, which the model cannot tell apart.

    Raises:
        InputError: `vocab_file` is missing or is no word vocabulary; when called, the
            vocabulary holds no word of any caption: it is another language's or data
            set's.
    """

    ends = ("<start>", "<end>")

    def __init__(self, vocab_file: AnyPath, max_tokens: int):
        self._vocab_file = vocab_file
        self._vocab = read_vocabulary(vocab_file)
        self._max_tokens = max_tokens
        self.vocab_size = len(self._vocab)

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        unknown = self._vocab["<unk>"]
        rows = (
            ([self._vocab.get(word, unknown) for word in words], None)
            for words in split_words(captions)
        )
        ends = self._vocab["<start>"], self._vocab["<end>"]
        table = _table(rows, len(captions), ends, self._max_tokens)
        tokens = CaptionTokens(*table, self._vocab[MASK], self.vocab_size)
        known = np.add.reduceat(tokens.ids != unknown, tokens.offsets[:-1]) - 2
        unmatched = int(((known == 0) & (tokens.lengths > 2)).sum())
        if unmatched and not known.any():
            raise InputError(
                f"{self._vocab_file}: no caption has a word of this vocabulary"
            )
        if unmatched:
            logging.warning(
                "%s: %d of %d captions have no word of this vocabulary",
                self._vocab_file,
                unmatched,
                len(captions),
            )
        return tokens

    def words(self, caption: str) -> list[str]:
        """All tokens are words here, the ends too."""
        first, last = self.ends
        return [first, *next(iter(split_words([caption]))), last]

    def as_json(self) -> str:
        """{word: id}."""
        return json.dumps(self._vocab, indent=0, ensure_ascii=False)


def _table(
    rows: Iterable[tuple[Sequence[int], Sequence[int | None] | None]],
    count: int,
    ends: tuple[int, int],
    max_tokens: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, words and offsets of `CaptionTokens`.

    Args:
        rows: a caption's ids without its ends, and the word that each is a piece of;
            None: every token is a word, the ends too.
        count: of captions.
        ends: ids of the first and of the last token of all captions.
        max_tokens: what lies between the ends is cut so that no caption has more.
    """
    ids: list[int] = []
    words: list[int | None] = []
    offsets = [0]
    cut = 0
    for row, row_words in progress(rows, "tokenising", count, "captions"):
        cut += len(row) > max_tokens - 2
        row = (ends[0], *row[: max_tokens - 2], ends[1])
        ids += row
        if row_words is None:
            words += range(len(row))
        else:
            words += (-1, *row_words[: max_tokens - 2], -1)
        offsets.append(len(ids))
    _warn_of_cuts(cut, count, max_tokens)
    return (
        np.array(ids, np.int32),
        np.array(words, np.int16),
        np.array(offsets, np.int64),
    )


def _warn_of_cuts(cut: int, count: int, max_tokens: int) -> None:
    if cut:
        logging.warning(
            "%d of %d captions have more than %d tokens; their ends are cut off",
            cut,
            count,
            max_tokens,
        )


def augment_words(
    ids: Int32[np.ndarray, " tokens"],
    words: Int[np.ndarray, " tokens"],
    rng: np.random.Generator,
    probability: float,
    mask_id: int,
    vocab_size: int,
) -> Int32[np.ndarray, " kept"]:
    """Word-level augmentation of one training caption (word −1 is left alone).

    Each word is picked with `probability`; of the picked, half have every piece masked,
    a tenth have every piece replaced by a random token, the rest are removed. At least
    one token is kept.
    """
    # One draw a word, shared by its pieces; word −1 ([CLS], [SEP]) reads the added 1.
    draw = np.append(rng.random(words.max(initial=-1) + 1), 1.0)[words]
    masked = draw < 0.5 * probability
    replaced = ~masked & (draw < 0.6 * probability)
    removed = ~masked & ~replaced & (draw < probability)
    if removed.all():
        removed[rng.integers(len(ids))] = False
    out = np.where(masked, np.int32(mask_id), ids)
    out[replaced] = rng.integers(vocab_size, size=replaced.sum())
    return out[~removed]


def bucket(length: int, lengths: tuple[int, ...]) -> int:
    """The smallest of the padded `lengths` that holds `length`."""
    return min(size for size in lengths if size >= length)
