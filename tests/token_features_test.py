"""Token features of a frozen BERT: computed once for a text and a model."""

import os

import jax
import numpy as np
import pytest

from vse_jax.base.errors import InputError
from vse_jax.base.files import make_room
from vse_jax.data.dataset import read_split
from vse_jax.data.regions import NpyRows
from vse_jax.distributed import preemption
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import make_mesh
from vse_jax.evaluation.encode import Embedder
from vse_jax.models.build import abstract_model, build_model, split_model
from vse_jax.token_features import (
    cached_token_features,
    features_folder,
)


@pytest.fixture
def parts(tiny_config):
    from flax import nnx

    graphdef, abstract = abstract_model(tiny_config)
    mesh = make_mesh(tiny_config, jax.devices()[:1])
    _, model = split_model(build_model(tiny_config, rngs=nnx.Rngs(0)))
    embedder = Embedder(tiny_config, graphdef, abstract, mesh, CompileCache())
    return embedder, model, read_split(tiny_config, "test")


def test_they_are_kept_and_not_computed_again(parts, tmp_path, monkeypatch):
    embedder, model, split = parts
    first = cached_token_features(embedder, model, split, tmp_path / "cache")
    tokens = embedder.tokens(split)
    assert first.shape == (tokens.offsets[-1], 32)
    for caption, rows in embedder.token_features(model, split):
        np.testing.assert_array_equal(first[tokens.span(caption)], rows)

    monkeypatch.setattr(embedder, "token_features", None)  # is not needed again
    again = cached_token_features(embedder, model, split, tmp_path / "cache")
    np.testing.assert_array_equal(again[0:9], first[0:9])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_run_that_is_stopped_meanwhile_leaves_nothing(parts, tmp_path, monkeypatch):
    def check():
        raise preemption.Preempted

    monkeypatch.setattr(preemption, "check", check)
    with pytest.raises(preemption.Preempted):
        cached_token_features(*parts, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_model_has_features_of_its_own(parts, tmp_path):
    embedder, model, split = parts
    first = cached_token_features(embedder, model, split, tmp_path)
    other = jax.tree.map(lambda x: x + 0.1, model)
    second = cached_token_features(embedder, other, split, tmp_path)
    assert first.path != second.path
    assert not np.array_equal(first[0], second[0])


def test_other_heads_have_features_of_their_own(parts, tiny_config, tmp_path):
    """The weights are the same."""
    embedder, model, split = parts
    first = cached_token_features(embedder, model, split, tmp_path)
    tiny_config.text.heads = 4
    graphdef, abstract = abstract_model(tiny_config)
    mesh = make_mesh(tiny_config, jax.devices()[:1])
    other = Embedder(tiny_config, graphdef, abstract, mesh, CompileCache())
    second = cached_token_features(other, model, split, tmp_path)
    assert not np.array_equal(first[0:9], second[0:9])


def test_runs_share_them_in_the_home_folder_if_they_can(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shared = tmp_path / ".cache" / "vse_jax" / "tokens"
    assert features_folder(tmp_path / "run") == shared
    assert shared.is_dir()
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert features_folder(tmp_path / "run") == tmp_path / "run" / "cache"


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    paths = [tmp_path / f"{name}_tokens_0.npy" for name in ("held", "old", "new")]
    for age, path in enumerate(paths):
        np.save(path, np.zeros(100))
        os.utime(path, (age, age))
    held = NpyRows(paths[0])
    held.hold()
    os.utime(paths[0], (0, 0))
    make_room(tmp_path, needed=1000, kept=3000)  # of 928 bytes each
    assert sorted(tmp_path.iterdir()) == sorted([paths[0], paths[2]])
    assert len(held) == 100
    del held
    make_room(tmp_path, needed=1000, kept=2000)
    assert list(tmp_path.iterdir()) == [paths[2]]


def test_a_folder_that_cannot_be_written_is_named(parts):
    embedder, model, split = parts
    from pathlib import Path

    with pytest.raises(InputError, match="/proc/nowhere"):
        cached_token_features(embedder, model, split, Path("/proc/nowhere"))
