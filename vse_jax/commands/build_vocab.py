"""--mode=build_vocab: the word vocabulary of a BiGRU model, from its captions."""

import json
from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.config import Config
from vse_jax.data.buckets import root_path
from vse_jax.data.lines import Lines
from vse_jax.data.vocabulary import count_words, vocabulary_folder


def build_vocab(config: Config) -> None:
    """Writes the vocabulary of the training captions.

    To config.text.vocab, or to where `find_vocabulary` looks first.

    Raises:
        InputError: no captions, the place is no local one, or the file holds another
            vocabulary already: a model that was trained with it would read the wrong
            words.
    """
    precomp = root_path(config.data.root) / "precomp"
    captions = Lines.read(precomp / f"{config.data.train_split}_caps.txt")
    words = count_words(captions, config.text.vocab_threshold)
    content = {
        "word2idx": {word: i for i, word in enumerate(words)},
        "idx2word": dict(enumerate(words)),
        "idx": len(words),
    }
    data = (json.dumps(content) + "\n").encode()
    named = config.text.vocab
    usual = vocabulary_folder(config) / f"{config.data.name}_precomp_vocab.json"
    path = usual if named is None else Path(named)
    if not isinstance(path, Path) or "://" in (named or ""):
        raise InputError(
            f"{named or path}: name a local file to write with config.text.vocab"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() != data:
            raise InputError(
                f"{path}: holds another vocabulary; remove it, or name another file "
                "with config.text.vocab"
            )
        write_atomically(path, data)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    print(f"{path}: {len(words)} words, from {len(captions)} captions")
