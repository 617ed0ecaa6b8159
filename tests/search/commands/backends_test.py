"""config.search.backend: an index by ONNX Runtime and OpenVINO."""

import sys

import numpy as np
import pytest

import vse_jax
from tests.helpers import tiny
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.config import check_config, with_fields
from vse_search.commands.index import index
from vse_search.store import Store

OTHERS = (("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of six images."""
    folder = tmp_path_factory.mktemp("images")
    for number, (colour, shape) in enumerate(
        (c, s) for c in ("red", "blue") for s in ("circle", "cross", "bar")
    ):
        tiny.draw(colour, shape, "left").save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(tiny_config, folder):
    tiny_config.search.pictures = str(folder)
    return tiny_config


def vectors(place) -> np.ndarray:
    with Store.open(place, read_only=True) as store:
        ids = range(1, store.count() + 1)
        return np.stack([store.vector(id) for id in ids])


@pytest.mark.system
def test_vectors_are_jaxs_and_an_index_of_another_backend_is_named(config, tmp_path):
    run = write_run(config, tmp_path / "run")
    index(config, run)
    wanted = vectors(run / "index")
    for backend, precision in OTHERS:
        config.search.update(backend=backend, precision=precision)
        with pytest.raises(
            InputError,
            match=r"index: jax computed its vectors, .*--config.search.backend=jax or",
        ):
            index(config, run)
        config.search.index = str(tmp_path / f"{backend}-{precision}")
        index(config, run)
        index(config, run)  # nothing new, and no complaint
        found = vectors(tmp_path / f"{backend}-{precision}")
        atol = 1e-5 if precision == "float32" else 0.02
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
        assert (found != wanted).any()
        config.search.index = None
    assert sys.modules["openvino_telemetry"] is None  # it would call its makers
    config.search.update(backend="jax", precision="float32")
    config.search.index = str(tmp_path / "openvino-bfloat16")
    with pytest.raises(
        InputError,
        match=r"openvino bfloat16 computed its vectors, and this is jax; add "
        r"--config.search.backend=openvino --config.search.precision=bfloat16 or",
    ):
        index(config, run)


@pytest.mark.system
def test_a_model_finds_and_explains_with_any_backend(tiny_config, folder, tmp_path):
    run = write_run(tiny_config, tmp_path / "run")
    image = folder / "0.png"
    wanted = vse_jax.load(run)
    model = vse_jax.load(run, {"search.backend": "onnx"})
    model.warm_up()
    np.testing.assert_array_equal(
        model.encode_captions(["a red bar"]), wanted.encode_captions(["a red bar"])
    )
    np.testing.assert_allclose(
        model.encode_images([image]), wanted.encode_images([image]), rtol=0, atol=1e-5
    )
    split, expected = (m.explain(image, "a red bar") for m in (model, wanted))
    np.testing.assert_allclose(split.cells, expected.cells, rtol=0, atol=1e-5)


def test_a_backend_that_is_not_installed_says_what_to_install(
    config, tmp_path, monkeypatch
):
    run = write_run(config, tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for backend in ("onnx", "openvino"):
        config.search.backend = backend
        with pytest.raises(
            InputError, match=rf"package onnx is .* pip install 'vse_jax\[{backend}\]'"
        ):
            vse_jax.model_of(config, run)


def test_bfloat16_is_openvinos(tiny_config):
    fields = {"search.precision": "bfloat16", "search.backend": "onnx"}
    with pytest.raises(InputError, match=r"needs search.backend = 'openvino'"):
        check_config(with_fields(tiny_config, fields))
