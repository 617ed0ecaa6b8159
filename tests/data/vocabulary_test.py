"""Words, vocabularies, --mode=build_vocab, and a training step with the result."""

import json
import subprocess
import sys
from pathlib import Path

import nltk
import numpy as np
import pytest
from nltk.tokenize import punkt, word_tokenize

from tests.helpers import tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.commands.build_vocab import build_vocab
from vse_jax.data import tokenizers, vocabulary
from vse_jax.data.vocabulary import (
    SPECIAL,
    count_words,
    find_vocabulary,
    read_vocabulary,
    resolve_vocab_size,
    resolve_vocabulary,
    split_words,
)
from vse_jax.train import train


@pytest.fixture
def fresh():
    """Forgets which sentence model is there, before and after."""

    def forget():
        vocabulary._sentence_splitter.cache_clear()
        nltk.tokenize._get_punkt_tokenizer.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(
        vocabulary.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


@pytest.fixture
def no_punkt(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


@pytest.fixture
def some_punkt(fresh, monkeypatch, tmp_path):
    """A sentence model that knows one abbreviation."""
    parameters = punkt.PunktParameters()
    parameters.abbrev_types.add("approx")
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    punkt.save_punkt_params(parameters, str(folder))


class TestSplitWords:
    @pytest.mark.parametrize(
        ("caption", "words"),
        [
            ("A dog's ball, isn't it?", "a dog 's ball , is n't it ?"),
            ("Two men cook. One eats.", "two men cook . one eats ."),
            ("Stop! Who is there? Nobody", "stop ! who is there ? nobody"),
            ("a 3.5 inch disk... gone.", "a 3.5 inch disk ... gone ."),
            ('He says "go".', "he says `` go '' ."),
            ("ÉCOLE naïve", "école naïve"),
            ("", ""),
            ("  ", ""),
        ],
    )
    def test_without_the_sentence_model(self, no_punkt, caption, words):
        assert list(split_words([caption])) == [words.split()]

    def test_that_it_is_missing_is_said_once(self, no_punkt, logged):
        list(split_words(["a. b"]))
        list(split_words(["a. b"]))
        assert len(logged) == 1
        assert "sentence model is not installed" in logged[0]

    def test_with_the_sentence_model(self, some_punkt, logged):
        captions = ["A box, approx. two feet. It is red.", "A cat; a dog."]
        expected = [word_tokenize(caption.lower()) for caption in captions]
        assert list(split_words(captions)) == expected
        assert "approx." in expected[0]  # the fallback would split there
        assert "feet" in expected[0]
        assert not logged


def write(path: Path, words, **changes) -> Path:
    content = {
        "word2idx": {word: i for i, word in enumerate(words)},
        "idx2word": dict(enumerate(words)),
        "idx": len(words),
    }
    path.write_text(json.dumps(content | changes))
    return path


class TestReadVocabulary:
    def test_mask_is_appended(self, tmp_path):
        vocab = read_vocabulary(write(tmp_path / "v.json", [*SPECIAL, "dog"]))
        assert vocab["<mask>"] == 5
        assert [vocab[word] for word in (*SPECIAL, "dog")] == [0, 1, 2, 3, 4]

    def test_a_mask_that_is_there_stays(self, tmp_path):
        path = write(tmp_path / "v.json", ["<pad>", "<mask>", *SPECIAL[1:]])
        assert read_vocabulary(path)["<mask>"] == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"word2idx": {"<pad>": 0}, "idx": 1}, "no word <start> in word2idx"),
            ({"word2idx": [1]}, "word2idx is no object of word: id"),
            ({"idx": 6}, "idx is 6, but word2idx has 5 words"),
            (
                {"word2idx": {w: i + (i > 2) for i, w in enumerate((*SPECIAL, "dog"))}},
                "5 words in word2idx, but none has the id 3",
            ),
            (
                {"word2idx": dict.fromkeys((*SPECIAL, "dog"), 0)},
                "5 words in word2idx, but none has the id 1",
            ),
            (
                {"word2idx": dict.fromkeys((*SPECIAL, "dog"), "0")},
                "5 words in word2idx, but none has the id 0",
            ),
        ],
    )
    def test_bad_content_is_named(self, tmp_path, changes, message):
        path = write(tmp_path / "v.json", [*SPECIAL, "dog"], **changes)
        with pytest.raises(InputError) as error:
            read_vocabulary(path)
        assert str(error.value) == f"{path}: {message}"

    @pytest.mark.parametrize("content", [b"{", b"[1]", b"{}", b"\xff", b"[PAD]\n"])
    def test_another_kind_of_file(self, tmp_path, content):
        path = tmp_path / "v.json"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"v\.json: not JSON with word2idx and idx"
        ):
            read_vocabulary(path)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"v\.json: No such file"):
            read_vocabulary(tmp_path / "v.json")


def config_at(root: Path):
    c = draft()
    c.data.root, c.data.name = str(root), "pets"
    c.text.kind = "bigru"
    return c


class TestFindVocabulary:
    def test_named_file(self, tmp_path):
        config = config_at(tmp_path / "pets")
        config.text.vocab = "some/vocab.json"
        assert find_vocabulary(config) == Path("some/vocab.json")

    def test_beside_the_data_root(self, tmp_path):
        config = config_at(tmp_path / "pets")
        (tmp_path / "vocab").mkdir()
        (tmp_path / "vocab" / "bert.txt").touch()
        with pytest.raises(InputError, match=r"no pets_precomp_vocab\.json; name a "):
            find_vocabulary(config)
        for name in ("pets_vocab.json", "pets_precomp_vocab.json"):
            (tmp_path / "vocab" / name).touch()
            assert find_vocabulary(config) == tmp_path / "vocab" / name


def test_words_of_another_data_set_are_not_a_models(tmp_path):
    """A converted model without its words is evaluated on other data."""
    config = config_at(tmp_path / "pets")
    (tmp_path / "vocab").mkdir()
    write(tmp_path / "vocab" / "pets_vocab.json", [*SPECIAL, "dog"])
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"data": {"name": "coco"}}))
    with pytest.raises(InputError) as error:
        resolve_vocabulary(config, model)
    assert str(error.value) == (
        f"{model}: holds no vocabulary: name that of coco, on which the model was "
        "trained, with config.text.vocab"
    )
    (model / "config.json").write_text(json.dumps({"data": {"name": "pets"}}))
    config = resolve_vocabulary(config, model)
    assert find_vocabulary(config) == tmp_path / "vocab" / "pets_vocab.json"


class TestTokenizeWords:
    @pytest.fixture
    def config(self, tmp_path):
        config = config_at(tmp_path / "pets")
        words = [*SPECIAL, "dog", "a"]
        config.text.vocab = str(write(tmp_path / "v.json", words))
        config.text.vocab_size = 7
        return config

    def test_ids(self, config):
        texts = ["A dog", "a horse, a dog", "horses fly", ""]
        tokens = tokenizers.caption_tokenizer(config)(texts)
        ids = [tokens.ids[tokens.span(i)].tolist() for i in range(len(tokens))]
        assert ids == [[1, 5, 4, 2], [1, 5, 3, 3, 5, 4, 2], [1, 3, 3, 2], [1, 2]]
        # Every token is a word of its own for the augmentation, <start> and <end> too.
        assert tokens.words[tokens.span(0)].tolist() == [0, 1, 2, 3]
        assert (tokens.mask_id, tokens.vocab_size) == (6, 7)

    def test_captions_of_unknown_words_only_are_counted(self, config, logged):
        tokenizers.caption_tokenizer(config)(["A dog", "horses fly", "cats", ""])
        assert [
            m for m in logged if m.endswith("captions have no word of this vocabulary")
        ]
        assert "v.json: 2 of 4 captions" in logged[-1]
        message = r"v\.json: no caption has a word of this vocabulary"
        with pytest.raises(InputError, match=message):
            tokenizers.caption_tokenizer(config)(["horses fly", ""])
        tokenizers.caption_tokenizer(config)([""])  # nothing strange about it

    def test_long_captions_are_cut(self, config):
        config.data.max_tokens = 4
        tokens = tokenizers.caption_tokenizer(config)(["dog " * 3, "dog a"])
        assert tokens.ids.tolist() == [1, 4, 4, 2, 1, 4, 5, 2]
        assert tokens.words.tolist() == [0, 1, 2, 3] * 2

    @pytest.mark.parametrize("size", [6, 8])
    def test_a_model_of_another_size_is_refused(self, config, size):
        config.text.vocab_size = size
        message = rf"v\.json: 7 tokens, but config\.text\.vocab_size is {size}"
        with pytest.raises(InputError, match=message):
            tokenizers.caption_tokenizer(config)(["a"])

    def test_size_0_takes_the_vocabularys(self, config):
        config.text.vocab_size = 0
        assert resolve_vocab_size(config).text.vocab_size == 7
        config.text.vocab_size = 9
        assert resolve_vocab_size(config).text.vocab_size == 9


class TestBuild:
    @pytest.fixture
    def config(self, tmp_path):
        precomp = tmp_path / "pets" / "precomp"
        precomp.mkdir(parents=True)
        (precomp / "train_caps.txt").write_text("A dog, a cat.\nThe dog.\nDogs\n")
        config = config_at(tmp_path / "pets")
        config.text.vocab_threshold = 2
        return config

    def test_words_are_counted_and_ordered(self):
        texts = ["b a c", "c b", "d"]
        assert count_words(texts, 2) == [*SPECIAL, "b", "c"]
        assert count_words(texts[::-1], 1) == [*SPECIAL, "b", "c", "a", "d"]

    def test_the_published_layout_is_written(self, config, tmp_path, capsys):
        build_vocab(config)
        path = tmp_path / "vocab" / "pets_precomp_vocab.json"
        content = json.loads(path.read_text())
        words = ["<pad>", "<start>", "<end>", "<unk>", ".", "a", "dog"]
        assert list(content) == ["word2idx", "idx2word", "idx"]
        assert content["word2idx"] == {word: i for i, word in enumerate(words)}
        assert content["idx2word"] == {str(i): word for i, word in enumerate(words)}
        assert content["idx"] == 7
        assert capsys.readouterr().out == f"{path}: 7 words, from 3 captions\n"
        assert find_vocabulary(config) == path
        assert len(read_vocabulary(path)) == 8

    def test_a_bucket_is_no_local_file(self, config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config.text.vocab = "gs://bucket/vocab.json"
        with pytest.raises(InputError, match=r"^gs://bucket/vocab.json: name a local"):
            build_vocab(config)
        assert not Path("gs:").exists()

    def test_twice_gives_the_same_bytes(self, config, tmp_path):
        build_vocab(config)
        path = tmp_path / "vocab" / "pets_precomp_vocab.json"
        first = path.read_bytes()
        build_vocab(config)
        assert path.read_bytes() == first
        assert list(path.parent.iterdir()) == [path]

    def test_another_vocabulary_is_not_overwritten(self, config, tmp_path):
        build_vocab(config)
        config.text.vocab_threshold = 1
        with pytest.raises(InputError, match=r"vocab\.json: holds another vocabulary"):
            build_vocab(config)
        config.text.vocab = str(tmp_path / "elsewhere" / "mine.json")
        build_vocab(config)
        assert "cat" in read_vocabulary(tmp_path / "elsewhere" / "mine.json")

    def test_no_captions(self, tmp_path):
        with pytest.raises(InputError, match=r"train_caps\.txt: No such file"):
            build_vocab(config_at(tmp_path / "pets"))

    @pytest.mark.system
    def test_the_command(self, tiny_root, tmp_path):
        path = tmp_path / "v.json"
        args = [f"--config=tests/helpers/tiny.py:{tiny_root}", "--mode=build_vocab"]
        args.append(f"--config.text.vocab={path}")
        subprocess.run([sys.executable, "main.py", *args], check=True)
        assert set(read_vocabulary(path)) >= {*tiny.COLOURS, *tiny.SHAPES, "<mask>"}


@pytest.mark.usefixtures("without_figures")
def test_a_model_trains_and_is_tested_with_it(tiny_config, tmp_path):
    config = tiny.quick(tiny_config)
    config.max_steps = 1
    config.text.update(kind="bigru", layers=1, word_dim=8, vocab_size=0)
    config.text.vocab = str(tmp_path / "v.json")
    build_vocab(config)
    train(config, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["text"]["vocab_size"] == len(read_vocabulary(tmp_path / "v.json"))
    metrics = json.loads((tmp_path / "run" / "eval_test.json").read_text())
    assert np.isfinite(metrics["rsum"])
