"""Captions as token ids: BERT's and SigLIP's pieces, or the words of a vocabulary."""

import abc
import array
import functools
import hashlib
import json
import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int, Int32
from tokenizers import Regex, models, normalizers

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, make_room, whole_file
from vse_jax.base.progress import progress
from vse_jax.config import Config
from vse_jax.data.bert_tokenizer import ABOUT, Pieces
from vse_jax.data.lines import Lines
from vse_jax.data.vocabulary import (
    MASK,
    bert_tokenizer,
    find_vocabulary,
    read_vocabulary,
    split_words,
    word_splitter,
)

_CHUNK = 4096  # captions tokenised at once, by all cores
_KEPT_FROM = 20_000  # captions whose tokens are kept on disk
_ARRAYS = ("ids", "words", "offsets")  # of `CaptionTokens`


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


class Tokenizer(abc.ABC):
    """Makes token ids of captions.

    A caption may be empty: only what is put around it. One of more than `max_tokens`
    tokens is cut, keeping what stands behind it; the number of those is logged once.

    vocab_size: ids are below it. ends: the tokens before and behind a caption.
    """

    ends: tuple[str, str]
    _behind: int  # how many tokens stand behind a caption

    def __init__(self, max_tokens: int, vocab_size: int, mask_id: int):
        self._max_tokens = max_tokens
        self.vocab_size = vocab_size
        self._mask_id = mask_id

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        """The tokens of captions; those of many are kept on disk, and mapped to memory.

        They lie in ~/.cache/vse_jax/tokens, beside the features of tokens.
        """
        if len(captions) < _KEPT_FROM or not isinstance(captions, Lines):
            return self._tokenise(captions)
        content = [captions.sha256(), self.as_json(), self._max_tokens, self._made_by()]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        folder = Path("~/.cache/vse_jax/tokens").expanduser()
        files = [folder / f"captions_tokens_{key}_{name}.npy" for name in _ARRAYS]
        if not all(file.is_file() for file in files):
            tokens = self._tokenise(captions)
            arrays = [getattr(tokens, name) for name in _ARRAYS]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                make_room(folder, sum(x.nbytes for x in arrays))
                for file, values in zip(files, arrays, strict=True):
                    with whole_file(file) as new, new.open("wb") as open_file:
                        np.save(open_file, values)
            except OSError as error:
                logging.warning("tokens are not kept: %s", error)
                return tokens
        for file in files:
            os.utime(file)
        ids, words, offsets = (np.load(file, mmap_mode="r") for file in files)
        return CaptionTokens(ids, words, offsets, self._mask_id, self.vocab_size)

    def _tokenise(self, captions: Sequence[str]) -> CaptionTokens:
        ids, words, offsets = array.array("i"), array.array("h"), array.array("q", [0])
        cut, limit = 0, self._max_tokens
        encoded = self._encode(captions)
        for found, numbers in progress(
            encoded, "tokenising", len(captions), "captions"
        ):
            if len(found) > limit:
                left_out = slice(limit - self._behind, len(found) - self._behind)
                del found[left_out], numbers[left_out]
                cut += 1
            ids.extend(found)
            words.extend(numbers)
            offsets.append(len(ids))
        if cut:
            logging.warning(
                "%d of %d captions have more than %d tokens; their ends are cut off",
                cut,
                len(captions),
                limit,
            )
        return CaptionTokens(
            np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32),
            np.frombuffer(words, np.int16) if words else np.zeros(0, np.int16),
            np.frombuffer(offsets, np.int64),
            self._mask_id,
            self.vocab_size,
        )

    @abc.abstractmethod
    def _encode(self, captions: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Yields the ids of each caption, and the words that they are pieces of."""

    @abc.abstractmethod
    def _made_by(self) -> str:
        """What decides the ids beside `as_json`: the library and its version."""

    @abc.abstractmethod
    def words(self, caption: str) -> list[str]:
        """The words that `CaptionTokens.words` numbers, from 0."""

    @abc.abstractmethod
    def as_json(self) -> str:
        """What a program without this package needs to make the same token ids.

        A tokenizer.json of the library tokenizers, which cuts and fills up, too; or the
        ids of words, {word: id}.
        """


def caption_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the config's text encoder wants.

    Longer captions than `longest_caption` are cut.

    Raises:
        InputError: no vocabulary, or one that does not fit config.text.vocab_size.
    """
    longest = longest_caption(config)
    vocab_file = find_vocabulary(config)
    unused = 0
    tokenizer: Tokenizer
    if config.text.kind == "bigru":
        tokenizer = WordTokenizer(vocab_file, longest)
    elif config.text.kind == "siglip":
        pieces = read_siglip_tokenizer(vocab_file)
        tokenizer = PieceTokenizer(pieces, longest)
        if pieces.pad != config.text.pad_id:
            raise InputError(
                f"{vocab_file}: fills up with token {pieces.pad}, but "
                f"config.text.pad_id is {config.text.pad_id}"
            )
    else:
        pieces = bert_tokenizer(config)
        tokenizer = PieceTokenizer(pieces, longest)
        unused = pieces.unused
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
        return (longest,)  # the encoder reads the padding
    shorter = {size for size in config.data.token_buckets if size < longest}
    return (*sorted(shorter), longest)


class PieceTokenizer(Tokenizer):
    """Pieces of words, by a tokenizer of the library `tokenizers`."""

    def __init__(self, pieces: Pieces, max_tokens: int):
        self._pieces = pieces.tokenizer
        self._has_words = isinstance(self._pieces.model, models.WordPiece)
        self.pad_id = pieces.pad
        around = self._pieces.encode("").tokens or [""]
        self.ends = around[0], around[-1]
        self._behind = [*self._pieces.encode("a").special_tokens_mask[::-1], 0].index(0)
        size = 1 + max(self._pieces.get_vocab().values(), default=-1)
        super().__init__(max_tokens, size, pieces.mask)

    def _encode(self, captions: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        for start in range(0, len(captions), _CHUNK):
            chunk = [*captions[start : start + _CHUNK]]
            for encoding in self._pieces.encode_batch(chunk):
                yield encoding.ids, self._word_numbers(encoding)

    def _made_by(self) -> str:
        return f"tokenizers {tokenizers.__version__}"

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


def read_siglip_tokenizer(file: AnyPath) -> Pieces:
    """A SentencePiece model as a tokenizer.json: SigLIP's. Captions are lower-cased.

    Of the first SigLIP they lose their punctuation, too, as it was trained (its
    tokenizer_config.json names SiglipTokenizer).

    Raises:
        InputError: the file is missing or holds no tokenizer, or captions are padded in
            front (a tokenizer_config.json beside it says that).
    """
    about = file.with_name(ABOUT)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        said = json.loads(about.read_text("utf-8")) if about.is_file() else {}
    except Exception as error:  # tokenizers raises plain Exceptions
        raise InputError(f"{file}: no tokenizer ({error})") from None
    if said.get("padding_side", "right") != "right":
        raise InputError(f"{about}: padding_side is not 'right'")
    pad = said.get("pad_token") or "<pad>"
    pad = pad["content"] if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise InputError(f"{file}: no token {pad} to fill captions up")
    before = tokenizer.normalizer
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if said.get("tokenizer_class") in ("SiglipTokenizer", "SiglipTokenizerFast"):
        steps += [  # SigLIP's, not SigLIP2's, was trained without punctuation
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    if before is not None:
        steps.append(before)
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Pieces(tokenizer, pad_id, tokenizer.get_vocab().get("<mask>", pad_id))


class WordTokenizer(Tokenizer):
    """The words of a BiGRU's vocabulary (see vocabulary.py); unknown ones are <unk>.

    The number of captions without any known word, which the model cannot tell apart, is
    logged.

    Raises:
        InputError: `vocab_file` is missing or is no word vocabulary; when called, the
            vocabulary holds no word of any caption: it is another language's or data
            set's.
    """

    ends = ("<start>", "<end>")
    _behind = 1

    def __init__(self, vocab_file: AnyPath, max_tokens: int):
        self._vocab_file = vocab_file
        self._vocab = read_vocabulary(vocab_file)
        super().__init__(max_tokens, len(self._vocab), self._vocab[MASK])

    def __call__(self, captions: Sequence[str]) -> CaptionTokens:
        tokens = super().__call__(captions)
        starts, unknown = tokens.offsets[:-1], self._vocab["<unk>"]
        known = np.add.reduceat(tokens.ids != unknown, starts) - 2
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
        # Every token is a word, the ends too.
        words = np.arange(len(tokens.ids)) - np.repeat(starts, tokens.lengths)
        return replace(tokens, words=words.astype(np.int16))

    def _encode(self, captions: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        unknown = self._vocab["<unk>"]
        first, last = (self._vocab[end] for end in self.ends)
        for words in split_words(captions):
            ids = [first, *(self._vocab.get(word, unknown) for word in words), last]
            yield ids, [0] * len(ids)

    def _made_by(self) -> str:
        return word_splitter()

    def words(self, caption: str) -> list[str]:
        first, last = self.ends
        return [first, *next(iter(split_words([caption]))), last]

    def as_json(self) -> str:
        return json.dumps(self._vocab, indent=0, ensure_ascii=False)


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
