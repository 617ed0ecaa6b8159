"""What is set before the first computation."""

import jax
import pytest

from vse_jax.distributed.runtime import configure, matmul_precision


@pytest.fixture
def settings(monkeypatch):
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


def test_precision_and_a_cache_of_its_own(tiny_config, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    tiny_config.matmul_precision = "high"
    configure(tiny_config)
    assert settings == {
        "jax_default_matmul_precision": "high",
        "jax_compilation_cache_dir": str(tmp_path / ".cache/vse_jax/compiled"),
        "jax_persistent_cache_min_compile_time_secs": 1.0,
    }


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "highest"), ("gpu", "high"), ("tpu", "high")]
)
def test_auto_is_float32_where_nothing_is_faster(tiny_config, device, precision):
    assert matmul_precision(tiny_config, device) == precision


def test_what_the_user_has_set_stays(tiny_config, settings, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    configure(tiny_config)
    assert settings == {"jax_default_matmul_precision": "highest"}
