"""The token ids of a BERT's folder are those of transformers.AutoTokenizer."""

import json
import shutil

import pytest
import tokenizers
import transformers

from tests.helpers import bert
from tests.helpers.bert import change, older
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.data.bert_tokenizer import read_bert_tokenizer
from vse_jax.data.tokenizers import PieceTokenizer, caption_tokenizer
from vse_jax.data.vocabulary import copy_vocabulary

ABOUT, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
CAPTIONS = [
    "Red café, Über Hund.",
    "e\u0301 and é and E\u0301 Й",
    "日本 red日本x",
    "a 🐶 red 🐶🐶",
    "a\x00 re\x07d\u200b \ufffd red\tcafé\u3000red\u2028x",
    "[MASK] red [SEP]x [mask] [UNK][PAD] of",
    "<new> Red<new>red [new]",
    "x²" * 60 + " red",
    "",
    "   ",
    "ſ ﬁ ß İ",
]


def official(vocab, max_tokens):
    return PieceTokenizer(read_bert_tokenizer(vocab, official=True), max_tokens)


def added(folder):
    """Two tokens that no vocabulary had: one special, one a word."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[new]"]})
    tokenizer.add_tokens([transformers.AddedToken("<new>", lstrip=True)])
    tokenizer.save_pretrained(folder)
    return folder


def older_added(folder):
    (older(folder) / "added_tokens.json").write_text('{"<new>": 49, "[new]": 50}')
    about = {"mask_token": "[MASK]", "additional_special_tokens": ["[new]"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(about))
    return folder


def without(*names):
    def remove(folder):
        for name in names:
            (folder / name).unlink()
        return folder

    return remove


def says(name, **fields):
    def say(folder):
        change(folder / name, **fields)
        return folder

    return say


def sentence_pieces(folder):
    """A BERT with another model's pieces, as multilingual MiniLM."""
    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words += [(f"▁{w}", -1.0) for w in ("red", "Red", "a", "café")]
    words += [(c, -3.0) for c in "▁redcafxé,日本[]MASK"]
    words.append(("<mask>", 0.0))
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=3))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    pieces.save(str(folder / TOKENIZER))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / ABOUT).write_text(json.dumps(about | {"mask_token": "<mask>"}))
    return folder


# Options of the tokenizer that is saved, and what is done to its folder then.
FOLDERS = {
    "uncased": ({}, None),
    "cased": ({"do_lower_case": False}, None),
    "accents kept": ({"strip_accents": False}, None),
    "accents stripped, cased": ({"do_lower_case": False, "strip_accents": True}, None),
    "Chinese in words": ({"tokenize_chinese_chars": False}, None),
    "pad is not 0": ({"words": ("red", *bert.WORDS[:5], *bert.WORDS[6:])}, None),
    "other names": (
        {
            "words": ("<pad>", "<unk>", "<s>", "</s>", "<mask>", *bert.WORDS[5:]),
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "mask_token": "<mask>",
        },
        None,
    ),
    "added tokens": ({}, added),
    "vocab.txt": ({"do_lower_case": False}, older),
    "vocab.txt alone": (
        {"do_lower_case": False},
        lambda folder: without(ABOUT)(older(folder)),
    ),
    "vocab.txt, added tokens": ({}, older_added),
    "tokenizer.json alone": ({}, without(ABOUT)),
    "cased, tokenizer.json alone": ({"do_lower_case": False}, without(ABOUT)),
    "cased, no config at all": (
        {"do_lower_case": False},
        without(ABOUT, "config.json"),
    ),
    "config says cased": ({}, says(ABOUT, do_lower_case=False)),
    "config says uncased": ({"do_lower_case": False}, says(ABOUT, do_lower_case=True)),
    "config says nothing": ({"do_lower_case": False}, says(ABOUT, do_lower_case=None)),
    "config of a fast class": (
        {"do_lower_case": False},
        says(ABOUT, do_lower_case=True, tokenizer_class="PreTrainedTokenizerFast"),
    ),
    "class in config.json": (
        {"do_lower_case": False},
        lambda folder: says("config.json", tokenizer_class="TokenizersBackend")(
            says(ABOUT, tokenizer_class=None, do_lower_case=None)(folder)
        ),
    ),
    "special tokens are text": ({}, says(ABOUT, split_special_tokens=True)),
    "SentencePiece": ({}, sentence_pieces),
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    options, then = FOLDERS[request.param]
    folder = bert.write_folder(tmp_path_factory.mktemp("berts") / "bert", **options)
    return then(folder) if then else folder


def config_for(folder, **fields):
    config = draft()
    config.data.root = str(folder / "no data")
    config.text.weights = str(folder)
    config.text.vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
    config.text.update(fields)
    return config


def ids(tokens):
    return [tokens.ids[tokens.span(i)].tolist() for i in range(len(tokens))]


def test_ids_are_those_of_transformers_and_so_are_those_that_are_kept(folder, tmp_path):
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [peer(caption)["input_ids"] for caption in CAPTIONS]
    config = config_for(folder)
    tokenizer = caption_tokenizer(config)
    tokens = tokenizer(CAPTIONS)
    assert ids(tokens) == expected
    assert tokens.vocab_size == len(peer)
    assert tokens.mask_id == peer.convert_tokens_to_ids(peer.mask_token or "[MASK]")
    assert tokenizer.pad_id == peer.convert_tokens_to_ids(peer.pad_token or "[PAD]")

    copy_vocabulary(config, tmp_path)
    config.text.weights = None
    config.text.vocab = str(tmp_path / TOKENIZER)
    again = caption_tokenizer(config)
    assert ids(again(CAPTIONS)) == expected
    assert again(CAPTIONS).mask_id == tokens.mask_id
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [kept(caption)["input_ids"] for caption in CAPTIONS] == expected


def test_a_cut_caption_keeps_what_stands_behind_it(folder):
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    config = config_for(folder)
    config.data.max_tokens = 4
    cut = ids(caption_tokenizer(config)(CAPTIONS))
    for caption, found in zip(CAPTIONS, cut, strict=True):
        whole = peer(caption)["input_ids"]
        assert found == (whole if len(whole) <= 4 else [*whole[:3], whole[-1]])


def test_the_exported_file_gives_the_same_ids(folder):
    tokenizer = caption_tokenizer(config_for(folder))
    program = tokenizers.Tokenizer.from_str(tokenizer.as_json())
    for caption, expected in zip(CAPTIONS, ids(tokenizer(CAPTIONS)), strict=True):
        encoding = program.encode(caption)
        length = sum(encoding.attention_mask)
        assert encoding.ids[:length] == expected
        assert set(encoding.ids[length:]) <= {tokenizer.pad_id}


def test_words_are_whole(tmp_path):
    folder = bert.write_folder(tmp_path / "bert", do_lower_case=False)
    tokenizer = caption_tokenizer(config_for(folder))
    tokens = tokenizer(["Über [MASK] Hund, x日本"])
    assert tokens.words.tolist() == [-1, 0, 0, 1, 2, 3, 4, 5, 6, -1]
    words = tokenizer.words("Über [MASK] Hund, x日本")
    assert words == ["Über", "[MASK]", "Hund", ",", "x", "日", "本"]


def test_where_two_files_disagree_the_one_that_is_taken_is_named(tmp_path, caplog):
    folder = bert.write_folder(tmp_path / "bert", do_lower_case=False)
    change(folder / ABOUT, do_lower_case=True)
    with caplog.at_level("WARNING", logger="absl"):
        caption_tokenizer(config_for(folder))
    assert f"{folder}/tokenizer.json: lowercase is False; True is taken" in caplog.text


class TestSizes:
    def test_fewer_tokens_than_rows_are_another_models(self, tmp_path):
        folder = bert.write_folder(tmp_path / "bert")
        size = len(bert.WORDS)
        for rows in (size - 1, size + 1):
            with pytest.raises(InputError) as error:
                caption_tokenizer(config_for(folder, vocab_size=rows))
            assert str(error.value) == (
                f"{folder}/tokenizer.json: {size} tokens, but config.text.vocab_size "
                f"is {rows}; name the model's own vocabulary with config.text.vocab"
            )

    def test_unless_the_folder_itself_counts_them(self, tmp_path):
        rows = len(bert.WORDS) + 3
        folder = bert.write_folder(tmp_path / "bert", rows=rows)
        config = config_for(folder, vocab_size=rows)
        expected = caption_tokenizer(config)(["Red x"])
        copy_vocabulary(config, tmp_path)
        config.text.update(weights=None, vocab=str(tmp_path / TOKENIZER))
        assert ids(caption_tokenizer(config)(["Red x"])) == ids(expected)
        config.text.vocab_size = rows + 1
        with pytest.raises(InputError, match=rf"is {rows + 1}$"):
            caption_tokenizer(config)


class TestNoOtherModels:
    """Weights without their vocabulary get none of another model's."""

    def test_a_folder_without_one(self, tmp_path):
        folder = bert.write_folder(tmp_path / "bert")
        (tmp_path / "vocab").mkdir()
        (tmp_path / "vocab" / "vocab.txt").write_text("\n".join(bert.WORDS))
        config = config_for(folder)
        config.data.root = str(tmp_path / "data")
        (folder / TOKENIZER).unlink()
        with pytest.raises(InputError) as error:
            caption_tokenizer(config)
        assert str(error.value) == (
            f"{folder}: no tokenizer.json and no vocab.txt: name the vocabulary of "
            "these weights with config.text.vocab"
        )

    def test_a_folder_that_is_not_here(self, tmp_path):
        config = draft()
        config.data.root = str(tmp_path / "data")
        config.text.weights = str(tmp_path / "german")
        with pytest.raises(InputError, match="german, and so no vocabulary of these"):
            caption_tokenizer(config)

    def test_a_class_that_vocab_txt_does_not_describe(self, tmp_path):
        folder = older(bert.write_folder(tmp_path / "bert"))
        config = config_for(folder)
        change(folder / ABOUT, tokenizer_class="BertJapaneseTokenizer")
        for vocab in (None, str(folder / "vocab.txt")):
            config.text.vocab = vocab
            with pytest.raises(InputError, match=r"vocab\.txt: for a BertJapaneseTok"):
                caption_tokenizer(config)


class TestVocabularyFile:
    """A vocab.txt that is named: the official program's way, without special tokens."""

    def test_case_is_that_of_the_config_beside_it(self, tmp_path):
        folder = older(bert.write_folder(tmp_path / "bert", do_lower_case=False))
        tokens = official(folder / "vocab.txt", 99)(["Red Hund", "[MASK]"])
        number = bert.WORDS.index
        assert ids(tokens)[0] == [2, number("Red"), number("Hund"), 3]
        assert ids(tokens)[1][1] == number("[")
        config = config_for(folder)
        config.text.vocab = str(folder / "vocab.txt")
        copy_vocabulary(config, tmp_path)
        shutil.rmtree(folder)
        again = official(tmp_path / "vocab.txt", 99)(["Red Hund", "[MASK]"])
        assert ids(again) == ids(tokens)

    def test_what_another_start_left_is_removed(self, tmp_path):
        folder = bert.write_folder(tmp_path / "bert")
        copy_vocabulary(config_for(folder), tmp_path)
        config = config_for(folder)
        config.text.vocab = str(older(folder) / "vocab.txt")
        copy_vocabulary(config, tmp_path)
        assert not (tmp_path / TOKENIZER).exists()
        assert not (tmp_path / ABOUT).exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TOKENIZER, "{", r"tokenizer\.json: not JSON"),
        (TOKENIZER, "{}", r"tokenizer\.json: holds no WordPiece tokens"),
        (
            TOKENIZER,
            '{"model": {"vocab": {"a": "b"}}}',
            r"tokenizer\.json: holds no Wor",
        ),
        (ABOUT, "[]", r"tokenizer_config\.json: not a JSON object"),
        (ABOUT, '{"do_lower_case": "no"}', r"tokenizer\.json: no tokenizer \("),
        (ABOUT, '{"added_tokens_decoder": {"x": 1}}', r"tokenizer_config\.json: "),
        ("added_tokens.json", '{"a": "b"}', r"added_tokens\.json: "),
        (
            "special_tokens_map.json",
            '{"cls_token": 1}',
            r"special_tokens_map\.json: ",
        ),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, message):
    folder = bert.write_folder(tmp_path / "bert")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_bert_tokenizer(folder / TOKENIZER)
    assert "\n" not in str(error.value)
