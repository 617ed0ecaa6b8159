"""Captions as token ids: BERT's and SigLIP's pieces, or the words of a vocabulary."""

import functools
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int, Int32
from tokenizers import models, normalizers

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data.bert_tokenizer import BertTokenizer, read_word_pieces
from vse_jax.data.vocabulary import (
    MASK,
    bert_tokenizer,
    find_vocabulary,
    read_vocabulary,
    split_words,
)

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


def caption_tokenizer(config: Config) -> Tokenizer:
    """What the config's text tower wants captions to be tokenised with.

    Longer captions than `longest_caption` are cut.

    Raises:
        InputError: no vocabulary, or one that does not fit config.text.vocab_size.
    """
    longest = longest_caption(config)
    vocab_file = find_vocabulary(config)
    unused = 0
    tokenizer: Tokenizer
    if config.text.kind == "siglip":
        tokenizer = FileTokenizer(vocab_file, longest)
        if tokenizer.pad_id != config.text.pad_id:
            raise InputError(
                f"{vocab_file}: fills up with token {tokenizer.pad_id}, but "
                f"config.text.pad_id is {config.text.pad_id}"
            )
    elif config.text.kind == "bigru":
        tokenizer = WordTokenizer(vocab_file, longest)
    else:
        bert = bert_tokenizer(config)
        tokenizer = WordPieceTokenizer(bert, longest)
        unused = bert.unused
    # Also with fewer tokens the ids are those of other words, unless the folder itself
    # counts rows of its weights that no token has.
    size, rows = tokenizer.vocab_size, config.text.vocab_size
    if rows not in (size, size + unused):
        hint = "; name the model's own vocabulary with config.text.vocab"
        raise InputError(
            f"{vocab_file}: {size} tokens, but config.text.vocab_size is {rows}"
            f"{'' if config.text.vocab else hint}"
        )
    return tokenizer


def longest_caption(config: Config) -> int:
    """The tokens that a caption keeps: data.max_tokens, or all of the positions."""
    if config.text.kind in ("bert", "siglip"):
        return min(config.data.max_tokens, config.text.max_positions)
    return config.data.max_tokens


def padded_lengths(config: Config) -> tuple[int, ...]:
    """The lengths that batches of captions are padded to: a program each.

    Those of config.data.token_buckets that are needed, the longest caption's last.
    """
    longest = longest_caption(config)
    if config.text.kind == "siglip" and not config.text.cache_features:
        return (longest,)  # the tower fills all of them up
    shorter = {size for size in config.data.token_buckets if size < longest}
    return (*sorted(shorter), longest)


class _PieceTokenizer:
    """Pieces of words, by a tokenizer of the library `tokenizers`.

    A caption may be empty (only what the tokenizer puts around it); one of more than
    `max_tokens` tokens is cut, keeping those behind it, and the number of those is
    logged once.
    """

    def __init__(
        self,
        pieces: tokenizers.Tokenizer,
        max_tokens: int,
        pad: str | None,
        mask: str | None,
    ):
        pieces.no_padding()
        pieces.no_truncation()
        self._pieces = pieces
        self._max_tokens = max_tokens
        self._has_words = isinstance(pieces.model, models.WordPiece)
        self.vocab_size: int = 1 + max(pieces.get_vocab().values(), default=-1)
        self.pad_id: int = 0 if pad is None else pieces.token_to_id(pad) or 0
        mask_id = None if mask is None else pieces.token_to_id(mask)
        self._mask_id: int = self.pad_id if mask_id is None else mask_id
        around = pieces.encode("").tokens or [""]
        self.ends: tuple[str, str] = (around[0], around[-1])

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        ids: list[int] = []
        words: list[int] = []
        offsets = [0]
        cut = 0
        encodings = itertools.chain.from_iterable(
            self._pieces.encode_batch(captions[start : start + _CHUNK])
            for start in range(0, len(captions), _CHUNK)
        )
        for encoding in progress(encodings, "tokenising", len(captions), "captions"):
            found, numbers = encoding.ids, self._word_numbers(encoding)
            if len(found) > self._max_tokens:
                behind = encoding.special_tokens_mask[::-1].index(0)
                first = self._max_tokens - behind
                found = found[:first] + found[len(found) - behind :]
                numbers = numbers[:first] + numbers[len(numbers) - behind :]
                cut += 1
            ids += found
            words += numbers
            offsets.append(len(ids))
        _warn_of_cuts(cut, len(captions), self._max_tokens)
        return CaptionTokens(
            np.array(ids, np.int32),
            np.array(words, np.int16),
            np.array(offsets, np.int64),
            self._mask_id,
            self.vocab_size,
        )

    def words(self, caption: str) -> list[str]:
        """The words that are cut into pieces, BERT's as it reads them: lower-case, …"""
        encoding = self._pieces.encode(caption)
        spans: dict[int, tuple[int, int]] = {}
        for number, (start, end) in zip(
            self._word_numbers(encoding), encoding.offsets, strict=True
        ):
            if number >= 0:
                spans[number] = spans.get(number, (start, end))[0], end
        written = [caption[start:end].strip() for start, end in spans.values()]
        read = self._pieces.normalizer if self._has_words else None
        special = self._pieces.get_added_tokens_decoder().values()
        kept = {token.content for token in special}
        return [
            word if read is None or word in kept else read.normalize_str(word).strip()
            for word in written
        ]

    def as_json(self) -> str:
        """A tokenizer.json that cuts and fills up by itself."""
        content = json.loads(self._pieces.to_str())
        if self._pieces.encode_special_tokens:  # the file cannot say it
            content["added_tokens"] = [
                token for token in content["added_tokens"] if not token["special"]
            ]
        pieces = tokenizers.Tokenizer.from_str(json.dumps(content))
        pieces.enable_truncation(self._max_tokens)
        pad = pieces.id_to_token(self.pad_id)
        pieces.enable_padding(
            length=self._max_tokens, pad_id=self.pad_id, pad_token=pad
        )
        return pieces.to_str()

    def _word_numbers(self, encoding: tokenizers.Encoding) -> list[int]:
        """The word that each token is a piece of; −1 for what is put around them."""
        if self._has_words:
            return [-1 if word is None else word for word in encoding.word_ids]
        # SentencePiece's pieces begin with ▁ where a word begins.
        numbers, word = [], -1
        for token, special in zip(
            encoding.tokens, encoding.special_tokens_mask, strict=True
        ):
            if not special and (word < 0 or token.startswith("▁")):
                word += 1
            numbers.append(-1 if special else word)
        return numbers


class WordPieceTokenizer(_PieceTokenizer):
    """A BERT's tokenizer: that of its folder, or a vocabulary file.

    Args:
        vocab: a vocabulary file with one token a line, as the official program reads
            it, or what `bert_tokenizer` read of a folder.
        max_tokens: that a caption keeps.

    Raises:
        InputError: the file is missing or is no BERT vocabulary.
    """

    def __init__(self, vocab: AnyPath | BertTokenizer, max_tokens: int):
        bert = vocab if isinstance(vocab, BertTokenizer) else read_word_pieces(vocab)
        super().__init__(bert.pieces, max_tokens, bert.pad, bert.mask)


class FileTokenizer(_PieceTokenizer):
    """A SentencePiece model as a tokenizer.json: SigLIP's. Captions are lower-cased.

    Raises:
        InputError: the file is missing or holds no tokenizer, or captions are padded in
            front (a tokenizer_config.json beside it says that).
    """

    def __init__(self, file: AnyPath, max_tokens: int):
        try:
            content = Path(os.fspath(file)).read_text(encoding="utf-8")
            pieces = tokenizers.Tokenizer.from_str(content)
            about = Path(os.fspath(file)).with_name("tokenizer_config.json")
            said = json.loads(about.read_text("utf-8")) if about.is_file() else {}
        except Exception as error:  # tokenizers raises plain Exceptions
            raise InputError(f"{file}: no tokenizer ({error})") from None
        if said.get("padding_side", "right") != "right":
            raise InputError(f"{about}: padding_side is not 'right'")
        pad = said.get("pad_token") or "<pad>"
        pad = pad["content"] if isinstance(pad, dict) else pad
        if pieces.token_to_id(pad) is None:
            raise InputError(f"{file}: no token {pad} to fill captions up")
        lower = normalizers.Lowercase()
        before = pieces.normalizer
        steps = [lower] if before is None else [lower, before]
        pieces.normalizer = normalizers.Sequence(steps)
        super().__init__(pieces, max_tokens, pad, "<mask>")


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
        first, last = self._vocab["<start>"], self._vocab["<end>"]
        ids: list[int] = []
        offsets = [0]
        cut = 0
        split = split_words(captions)
        for words in progress(split, "tokenising", len(captions), "captions"):
            kept = words[: self._max_tokens - 2]
            cut += len(kept) < len(words)
            ids += [first, *(self._vocab.get(word, unknown) for word in kept), last]
            offsets.append(len(ids))
        _warn_of_cuts(cut, len(captions), self._max_tokens)
        lengths = np.diff(offsets)
        tokens = CaptionTokens(
            np.array(ids, np.int32),
            # Every token is a word, the ends too.
            np.concatenate([np.arange(n, dtype=np.int16) for n in (0, *lengths)]),
            np.array(offsets, np.int64),
            self._vocab[MASK],
            self.vocab_size,
        )
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
