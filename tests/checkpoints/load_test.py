"""A shared folder as anybody may send one: what is read of it, and what is refused."""

import json
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

import vse_jax
from tests.helpers import bert, tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import one_line_error, run
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.command_line import read_config
from vse_jax.commands.push import push
from vse_jax.config import load_config
from vse_jax.train import train

OWN = "examples.attention_pool.pool:ElementwiseAttentionPool"


def share(config, folder):
    """W/share of a run with these towers, moved away from its run."""
    run = write_run(config, folder / "run")
    push(config, run, None)
    return shutil.move(run / "share", folder / "theirs")


@pytest.fixture(scope="module")
def original(tiny_root, tmp_path_factory):
    return share(
        draft(tiny.get_config(str(tiny_root))), tmp_path_factory.mktemp("shared")
    )


@pytest.fixture
def theirs(original, tmp_path):
    return shutil.copytree(original, tmp_path / "theirs")


@pytest.fixture(scope="module")
def with_code(tiny_root, tmp_path_factory):
    config = draft(tiny.get_config(str(tiny_root)))
    config.image.pool = OWN
    return share(config, tmp_path_factory.mktemp("code"))


def change(folder, **fields):
    """Sets fields of config.json, 'image.pool' written image__pool."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for field, value in fields.items():
        group, _, name = field.rpartition("__")
        (content[group] if group else content)[name] = value
    file.write_text(json.dumps(content))


def refusal(folder) -> str:
    with pytest.raises(InputError) as error:
        vse_jax.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_modes_take_it_as_a_workdir(theirs, tiny_root, environment):
    root = f"--config.data.root={tiny_root}"
    args = [f"--workdir={theirs}", root, "--config.batch_size=16"]
    run([*args, "--mode=eval"], environment)
    assert json.loads((theirs / "eval_test.json").read_text())["images"] == 32
    line = one_line_error(args, environment)
    assert line == (
        f"error: {theirs}: holds a model that is not trained here; name another "
        "--workdir"
    )
    names = {path.name for path in theirs.iterdir()}
    assert "checkpoints" not in names


class TestCode:
    def test_is_not_imported_unless_it_is_trusted(self, with_code):
        text = refusal(with_code)
        assert f"config.image.pool = {OWN}; if you" in text
        assert "trust_code=True" in text
        model = vse_jax.load(with_code, trust_code=True)
        assert model.encode_captions(["a red bar"]).shape == (1, 32)

    @pytest.mark.parametrize("checkpoints", [False, True])
    def test_comes_in_no_disguise(self, theirs, checkpoints):
        """A run's classes are trusted: a shared model must not pass for a run."""
        change(theirs, model_type=None, image__pool="this:d")
        if checkpoints:
            (theirs / "checkpoints").mkdir()
        assert refusal(theirs).endswith("no model_type, which a shared model has")
        assert "this" not in sys.modules

    def test_no_more_on_the_command_line(self, with_code, tiny_root, environment):
        args = [f"--workdir={with_code}", f"--config.data.root={tiny_root}"]
        line = one_line_error([*args, "--mode=eval"], environment)
        assert "this model runs code of its author" in line
        run([*args, "--mode=eval", "--trust_code"], environment)

    def test_nor_by_the_name_of_its_config(self, with_code):
        name = str(with_code / "config.json")
        with pytest.raises(InputError, match="runs code of its author"):
            read_config(name, trust_code=False)
        config = read_config(name, trust_code=True)
        assert config.image.pool == OWN

    @pytest.mark.parametrize("where", ["inside", "as a package", "on the path"])
    def test_of_the_folder_itself_is_never_imported(
        self, theirs, monkeypatch, where, tmp_path
    ):
        mark = tmp_path / "executed"
        code = f"open({str(mark)!r}, 'w')\nclass Pool: pass\n"
        (theirs / "evil.py").write_text(code)
        name = "theirs.evil" if where == "as a package" else "evil"
        change(theirs, image__pool=f"{name}:Pool")
        if where == "on the path":
            monkeypatch.syspath_prepend(theirs)
        else:
            monkeypatch.chdir(tmp_path if where == "as a package" else theirs)
        with pytest.raises(InputError, match="nothing in it is executed"):
            vse_jax.load(theirs, trust_code=True)
        assert refusal(theirs).startswith(f"{theirs}: this model runs code")
        assert not mark.exists()
        assert str(theirs) not in sys.path or where == "on the path"


def test_a_file_elsewhere_is_not_read(theirs, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (theirs / "vocab.txt").unlink()
    (theirs / "vocab.txt").symlink_to("../secret.txt")
    assert refusal(theirs) == (
        f"{theirs / 'vocab.txt'}: a link to a file outside of its folder"
    )


def test_paths_in_its_config_are_not_followed(theirs, tmp_path):
    vocabulary = shutil.move(theirs / "vocab.txt", tmp_path / "vocab.txt")
    change(theirs, text__vocab=str(vocabulary), text__weights=str(tmp_path))
    assert refusal(theirs) == (
        f"{theirs}: no tokenizer.json and no vocab.txt, the vocabulary of this model"
    )


def test_another_model_is_told_by_all_its_differences(theirs):
    file = theirs / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    arrays["params/image/more"] = np.zeros(3, np.float32)
    arrays["params/image/fc/bias"] = np.zeros(7, np.float32)
    arrays["params/image/fc/kernel"] = arrays["params/image/fc/kernel"].astype(int)
    del arrays["params/text/linear/bias"]
    safetensors.numpy.save_file(arrays, file)
    assert refusal(theirs) == (
        f"{file}: params/image/more is unexpected; params/image/fc/bias has shape [7], "
        "expected [32]; params/image/fc/kernel is I64, expected F32; "
        "params/text/linear/bias is missing"
    )


def test_bad_numbers_are_named(theirs):
    file = theirs / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    name = sorted(arrays)[0]
    arrays[name] = np.full_like(arrays[name], np.nan)
    safetensors.numpy.save_file(arrays, file)
    assert refusal(theirs) == f"{file}: NaN or infinity in {name}"


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95" + bytes(40)])
def test_only_safetensors_are_read(theirs, content):
    file = theirs / "model.safetensors"
    file.write_bytes(content)
    assert refusal(theirs).startswith(f"{file}: ")
    file.rename(theirs / "pytorch_model.bin")
    assert "no checkpoints there" in refusal(theirs)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"model_type": "clip"}, "model_type is 'clip', not 'vse_jax'"),
        ({"embed_dim": "many"}, "config.embed_dim: 'many' is no number"),
        ({"image__pool": "gpoo"}, "config.image.pool: 'gpoo' is none of"),
    ],
)
def test_a_config_that_cannot_be_is_named(theirs, fields, line):
    change(theirs, **fields)
    assert line in refusal(theirs)


def test_a_missing_field_has_its_default(theirs):
    file = theirs / "config.json"
    content = json.loads(file.read_text())
    del content["image"]["normalise"]
    file.write_text(json.dumps(content))
    vse_jax.load(theirs)
    del content["text"]["heads"]
    file.write_text(json.dumps(content))
    assert refusal(theirs) == (
        f"{file}: config.text.heads: does not divide text.hidden = 32"
    )


@pytest.mark.parametrize("size", [31, 33])
def test_a_vocabulary_of_another_size_is_another_models(theirs, size):
    file = theirs / "vocab.txt"
    words = [*file.read_text().split(), "more"][:size]
    file.write_text("\n".join(words) + "\n")
    assert refusal(theirs) == (
        f"{file}: {size} tokens, but config.text.vocab_size is 32"
    )


@pytest.mark.usefixtures("without_figures")
class TestVocabulary:
    """A run carries its own."""

    def test_is_kept_and_no_other_is_taken(self, tiny_config, tiny_root, tmp_path):
        root = shutil.copytree(tiny_root, tmp_path / "data" / "tiny")
        shutil.copytree(tiny_root.parent / "vocab", tmp_path / "data" / "vocab")
        tiny.quick(tiny_config).data.root = str(root)
        tiny_config.max_steps = 1
        trained = tmp_path / "run"
        train(tiny_config, trained)
        expected = vse_jax.load(trained).encode_captions(["a red bar"])

        # Another vocabulary is refused.
        other = tmp_path / "other.txt"
        words = (trained / "vocab.txt").read_text().split()
        other.write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")
        with pytest.raises(InputError, match="is another vocabulary than the model's"):
            vse_jax.load(trained, {"text.vocab": str(other)})
        tiny_config.text.vocab = str(other)
        with pytest.raises(InputError, match="is another vocabulary than the model's"):
            train(tiny_config, trained)
        # The same words in another place are the same.
        shutil.copy(trained / "vocab.txt", other)
        train(tiny_config, trained)

        shutil.rmtree(tmp_path / "data")
        moved = trained.rename(tmp_path / "moved")
        assert load_config(moved / "config.json").text.vocab == f"{moved}/vocab.txt"
        found = vse_jax.load(moved).encode_captions(["a red bar"])
        np.testing.assert_array_equal(found, expected)

    def test_is_the_tokenizer_of_the_weights(self, tiny_config, tmp_path):
        """'Red' is not 'red' for a cased BERT: trained, resumed, shared and loaded."""
        tiny.quick(tiny_config)
        weights = bert.write_folder(tmp_path / "bert", do_lower_case=False)
        tiny_config.text.weights = str(weights)
        tiny_config.text.vocab_size = len(bert.WORDS)
        tiny_config.max_steps = 1
        run = tmp_path / "run"
        train(tiny_config, run)
        assert not (run / "vocab.txt").exists()
        shutil.rmtree(weights)
        tiny_config.max_steps = 2
        train(tiny_config, run)
        push(load_config(run / "config.json"), run, None)
        shared = shutil.copytree(run / "share", tmp_path / "theirs")
        for folder in (run, shared):
            upper, lower = vse_jax.load(folder).encode_captions(
                ["Red cross", "red cross"]
            )
            assert np.abs(upper - lower).max() > 1e-3
        assert {path.name for path in shared.iterdir()} == {
            "README.md",
            "config.json",
            "cutoff.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert "`tokenizer.json`" in (shared / "README.md").read_text()

    def test_is_not_replaced_by_another_models(self, tiny_config, tmp_path):
        weights = bert.write_folder(tmp_path / "bert")
        (weights / "tokenizer.json").unlink()
        tiny_config.text.weights = str(weights)
        tiny_config.text.vocab_size = len(bert.WORDS)
        with pytest.raises(InputError, match=r"bert: no tokenizer\.json and no vocab"):
            train(tiny_config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
