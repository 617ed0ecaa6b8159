"""A small BERT's Hugging Face folder, as transformers saves it."""

import json
from pathlib import Path

import torch
import transformers

from tests.helpers import tiny

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *SPECIAL,
    *("red", "Red", "café", "cafe", "Café", "hund", "Hund", "uber", "Ü", "##ber", "ü"),
    *("日", "本", "日本", "##本", "и", "й", "##s", "x", "²", "e", "é", ",", "."),
    *("[", "]", "mask", *tiny.WORDS[:8], *tiny.COLOURS[1:], *tiny.SHAPES),
)


def write_tokenizer(folder: Path, words=WORDS, **options) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    vocab = {word: number for number, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocab, **options).save_pretrained(folder)
    return folder


def write_folder(folder: Path, words=WORDS, rows: int | None = None, **options) -> Path:
    """All of it, with random weights; `rows`: of the weights, if there are more."""
    write_tokenizer(folder, words, **options)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=rows or len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def older(folder: Path) -> Path:
    """The folder as years ago: vocab.txt in place of tokenizer.json."""
    file = folder / "tokenizer.json"
    vocab = json.loads(file.read_text())["model"]["vocab"]
    words = sorted(vocab, key=vocab.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    file.unlink()
    return folder


def change(file: Path, **fields) -> None:
    """Sets fields of a JSON object; None removes one."""
    content = json.loads(file.read_text()) | fields
    content = {name: value for name, value in content.items() if value is not None}
    file.write_text(json.dumps(content))
