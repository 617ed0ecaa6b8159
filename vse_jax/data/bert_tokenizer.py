"""A BERT's own tokenizer, from the files that it was published with.

    tokenizer.json                   what transformers and tokenizers save today
    tokenizer_config.json            case, accents, Chinese characters, special tokens
    special_tokens_map.json, added_tokens.json      the same, in older folders
    vocab.txt                        the tokens, one a line
    config.json                      which class of tokenizer, how many rows of weights

A folder is read as `transformers.AutoTokenizer` (5.23) reads it, so that the ids are
those that the weights were trained with. It is kept as a tokenizer.json that says all.
(Importing transformers itself takes seconds, since it loads PyTorch.)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from absl import logging
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_bytes, read_lines, read_object

TOKENIZER, ABOUT, VOCABULARY = "tokenizer.json", "tokenizer_config.json", "vocab.txt"

# A BERT's special tokens where its files name none; in the order in which transformers
# adds those that are missing.
_SPECIAL: dict[str, Any] = {
    "bos_token": None,
    "eos_token": None,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# transformers takes only the tokens from the tokenizer.json of these classes, which are
# one and the same; case and accents are tokenizer_config.json's, or BERT's own.
_REBUILT = {
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "ElectraTokenizer",
    "MobileBertTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
}
# An option of the normalizer: its name in tokenizer_config.json, and its default.
_OPTIONS = {
    "lowercase": ("do_lower_case", True),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
    "strip_accents": ("strip_accents", None),
}


@dataclass(frozen=True)
class Pieces:
    """A tokenizer of the library `tokenizers`, with what its file cannot say.

    pad, mask: ids of the tokens that pad and mask. unused: rows of the weights that the
    folder counts and no token has. kept: a BERT's files that a model's folder keeps.
    """

    tokenizer: tokenizers.Tokenizer
    pad: int
    mask: int
    unused: int = 0
    kept: Mapping[str, bytes] = field(default_factory=dict)

    def equals(self, other: "Pieces") -> bool:
        """Whether both make the same ids of a caption without special tokens."""
        ours, theirs = (json.loads(x.tokenizer.to_str()) for x in (self, other))
        vocabularies = self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        return vocabularies and ours["normalizer"] == theirs["normalizer"]


def read_bert_tokenizer(file: AnyPath, *, official: bool = False) -> Pieces:
    """The tokenizer of a BERT's folder.

    Args:
        file: tokenizer.json, or vocab.txt if there is none.
        official: a vocabulary file as the official program reads it. No special token
            is recognised inside a caption. Case, accents and Chinese characters are as
            a tokenizer_config.json beside the file says, else lower-case.

    Raises:
        InputError: a file that cannot be read, or is no tokenizer's.
    """
    folder = file.parent
    about, model = _object(folder / ABOUT), _object(folder / "config.json")
    saved = read_object(file) if file.name == TOKENIZER else None
    rebuilt = _is_rebuilt(file, about, model)
    special, more, added = _special_tokens(folder, about, saved)
    if rebuilt:
        vocab = _tokens(file, saved)
        usual = {name: t and _added_token(t) for name, t in _SPECIAL.items()}
        special = {name: special.get(name, usual[name]) for name in _SPECIAL}
    names = {name: token.content for name, token in special.items() if token}
    if official:
        special, more, added = {}, [], {}
        for name in ("cls_token", "sep_token", "unk_token", "mask_token"):
            if (text := names.get(name)) not in vocab:
                raise InputError(f"{file}: no token {text}: not a BERT vocabulary")
    try:
        if rebuilt:
            wordpiece = models.WordPiece(vocab=vocab, unk_token=names["unk_token"])
            pieces = tokenizers.Tokenizer(wordpiece)
            options = {name: about.get(*said) for name, said in _OPTIONS.items()}
            pieces.normalizer = normalizers.BertNormalizer(clean_text=True, **options)
            pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            _warn_of_difference(file, saved or {}, pieces)
        else:
            pieces = tokenizers.Tokenizer.from_str(json.dumps(saved))
        # Special and added tokens are recognised inside a caption.
        there = pieces.get_added_tokens_decoder().values()
        missing = [
            added[number]
            for number in sorted(added)
            if repr(added[number]) not in map(repr, there)
        ]
        known = {token.content for token in (*there, *missing)}
        for token in (*special.values(), *more):
            if token is not None and token.content not in known:
                known.add(token.content)
                missing.append(token)
        for token in missing:
            token.special = token.special or token.content in names.values()
        pieces.add_tokens(missing)
        if rebuilt:  # [CLS] in front of a caption and [SEP] behind it
            ends = names["cls_token"], names["sep_token"]
            pieces.post_processor = processors.TemplateProcessing(
                single=f"{ends[0]}:0 $A:0 {ends[1]}:0",
                special_tokens=[(token, pieces.token_to_id(token)) for token in ends],
            )
        split_special = bool(about.get("split_special_tokens")) and not official
        pieces.encode_special_tokens = split_special
    except Exception as error:  # tokenizers raises plain Exceptions
        where = folder / ABOUT if official else file
        raise InputError(f"{where}: no tokenizer ({error})") from None
    pieces.no_padding()
    pieces.no_truncation()
    ids: Mapping[Any, int] = pieces.get_vocab()
    pad = ids.get(names.get("pad_token"), ids.get("[PAD]", 0))
    mask = ids.get(names.get("mask_token"), ids.get("[MASK]", pad))
    # Rows of the weights that no token has, as the folder itself says.
    unused, rows = about.get("unused_rows", 0), model.get("vocab_size")
    if type(rows) is int:
        unused = max(rows - 1 - max(ids.values(), default=-1), 0)
    unused = unused if type(unused) is int else 0
    if official:
        standard = dict(_OPTIONS.values()) | _SPECIAL
        said = {name: about.get(name, default) for name, default in standard.items()}
        said |= {name: names.get(name) for name in _SPECIAL} | {"unused_rows": unused}
        kept = {k: v for k, v in said.items() if v != standard.get(k, 0)}
        files = {VOCABULARY: read_bytes(file)} | ({ABOUT: _json(kept)} if kept else {})
        return Pieces(pieces, pad, mask, unused, files)
    kept = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "split_special_tokens": split_special,
        "unused_rows": unused,
    }
    files = {TOKENIZER: pieces.to_str().encode(), ABOUT: _json(kept)}
    return Pieces(pieces, pad, mask, unused, files)


def _is_rebuilt(file: AnyPath, about: Mapping, model: Mapping) -> bool:
    """Whether a folder's tokenizer is of a class that is rebuilt from its tokens.

    Raises:
        InputError: it is not, and there is only a vocabulary file.
    """
    needed = file.name != TOKENIZER
    kind = about.get("tokenizer_class") or model.get("tokenizer_class")
    if kind is None and (needed or model.get("model_type") == "bert"):
        return True
    if (found := str(kind).removesuffix("Fast")) in _REBUILT:
        return True
    if needed:
        raise InputError(
            f"{file}: for a {found}, which a vocabulary file does not describe: save "
            f"and use its {TOKENIZER}"
        )
    return False


def _tokens(file: AnyPath, saved: Mapping[str, Any] | None) -> dict[str, int]:
    """Token → id of a vocabulary file, or of a tokenizer.json's content."""
    if saved is None:
        return {token: i for i, token in enumerate(read_lines(file))}
    model = saved.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise InputError(
            f"{file}: holds no WordPiece tokens, as a BertTokenizer's does"
        )
    return vocab


def _special_tokens(
    folder: AnyPath, about: Mapping[str, Any], saved: Mapping[str, Any] | None
) -> tuple[dict[str, AddedToken | None], list[AddedToken], dict[int, AddedToken]]:
    """({"cls_token": token, …} as far as it is said, others, id → added token)."""

    def tokens(said: Mapping[str, Any]) -> tuple[dict, list]:
        more = said.get("extra_special_tokens") or said.get("additional_special_tokens")
        more = more.values() if isinstance(more, dict) else more or ()
        named = {name: said[name] for name in _SPECIAL if name in said}
        return (
            {name: _added_token(x) if x else None for name, x in named.items()},
            [_added_token(token) for token in more],
        )

    added: dict[int, AddedToken] = {}
    where = folder / ABOUT
    try:
        special, more = tokens(about)
        if "added_tokens_decoder" in about:
            for number, token in about["added_tokens_decoder"].items():
                added[int(number)] = _added_token(token)
        else:
            where = folder / "special_tokens_map.json"
            said = {
                name: token | {"special": True}
                if name in _SPECIAL and isinstance(token, dict)
                else token
                for name, token in _object(where).items()
            }
            older, older_more = tokens(said)
            special |= older
            more = more or older_more
            texts = {token.content for token in (*special.values(), *more) if token}
            where = folder / "added_tokens.json"
            for text, number in _object(where).items():
                added[int(number)] = AddedToken(
                    text, normalized=text not in texts, special=text in texts
                )
            where = folder / TOKENIZER
            for token in (saved or {}).get("added_tokens", ()):
                added[token["id"]] = _added_token(token)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{where}: {error!r}") from None
    by_text = {token.content: token for token in added.values()}
    special = {
        name: token and by_text.get(token.content, token)
        for name, token in special.items()
    }
    return special, more, added


def _added_token(token: Any) -> AddedToken:
    """A token as the files write it: a text, or an object of content and flags."""
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    flags = {k: v for k, v in token.items() if k not in ("id", "__type")}
    return AddedToken(flags.pop("content"), **flags)


def _warn_of_difference(
    file: AnyPath, saved: Mapping[str, Any], pieces: tokenizers.Tokenizer
) -> None:
    there = saved.get("normalizer")
    taken = json.loads(pieces.to_str())["normalizer"]
    if not isinstance(there, dict) or there.get("type") != taken["type"]:
        return
    apart = [name for name in _OPTIONS if there.get(name, taken[name]) != taken[name]]
    if apart:
        said = ", ".join(f"{name} is {there[name]!r}" for name in apart)
        ours = ", ".join(repr(taken[name]) for name in apart)
        what = f"{ours} is taken, as transformers does: {ABOUT}'s, or BERT's default"
        logging.warning("%s: %s; %s", file, said, what)


def _object(file: AnyPath) -> dict[str, Any]:
    """The object in a file; empty if there is none."""
    return read_object(file) if file.is_file() else {}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
