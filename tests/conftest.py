"""Shared test set-up: eight simulated CPU devices, quick compiles, shapes checked."""

import gc
import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jax").startswith("0.10."):
    # The older of its two code generators for CPUs compiles in 40 % of the time; later
    # versions have the newer one only.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")

import jax
from jaxtyping import install_import_hook

# Compile time dominates the suite; for models this small -O0 code is fast enough.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_default_matmul_precision", "highest")
# One cache for all workers and runs: what one test compiled, others read, in a fifth of
# the time.
jax.config.update("jax_compilation_cache_dir", f"{os.getcwd()}/.pytest_cache/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Shapes in signatures are checked at run time from here on.
install_import_hook(["vse_jax", "vse_search"], "beartype.beartype")

from pathlib import Path

import pytest

from tests.helpers import buckets, tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import run
from vse_jax.data import images

images.own_process()  # as main.py does

# What was imported stays: no search for garbage goes through it again.
gc.freeze()

# The longest files first, so that no worker ends with one of them alone.
_FIRST = (
    *("cluster_test", "main_test", "step_test", "trajectory_test", "load_test"),
    *("siglip_test", "runs_test", "gpo_synthetic_test"),
)


@pytest.hookimpl(tryfirst=True)  # -m reads the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if {"environment", "services"} & set(item.fixturenames):
            item.add_marker("system")

    def place(item) -> int:
        return _FIRST.index(item.path.stem) if item.path.stem in _FIRST else len(_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> Path:
    """The data root of `tests.helpers.tiny`; read-only for tests."""
    return tiny.write_root(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def tiny_config(tiny_root):
    """A fresh config over `tiny_root`."""
    return draft(tiny.get_config(str(tiny_root)))


@pytest.fixture
def without_figures(monkeypatch):
    """Runs draw nothing: of a tiny one it would be half of the time."""
    for name in ("train.plot_curves", "commands.evaluate.plot_retrieval"):
        monkeypatch.setattr(f"vse_jax.{name}", lambda *_, **__: None)


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    """{"gs": address, "s3": address} of services with one bucket, BUCKET, each."""
    folder = tmp_path_factory.mktemp("gcs")
    with buckets.gcs_server(folder) as gs, buckets.s3_server() as s3:
        yield {"gs": gs, "s3": s3}


@pytest.fixture
def in_buckets(services, monkeypatch):
    """This process reaches `services`."""
    for name, value in buckets.environment(**services).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For programs in processes of their own: quick compiles, kept; one device.

    What takes it is marked `system`.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one cache for all workers
        session = session.parent
    return {
        **os.environ,
        "HOME": str(session / "home"),  # where programs keep what they compute
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(session / "compiled"),
        # Small programs, too, are compiled by the first of many processes only.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        # Raised inside ml_collections: it loads configs with load_module().
        "PYTHONWARNINGS": "error,ignore:the load_module:DeprecationWarning",
    }


@pytest.fixture(scope="session")
def tiny_args(tiny_root):
    return [
        f"--config=tests/helpers/tiny.py:{tiny_root}",
        "--config.checkpoint.every_steps=7",
    ]


@pytest.fixture(scope="session")
def trained(tiny_args, environment, tmp_path_factory):
    """A workdir that was trained without interruption, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    out, err = run([*tiny_args, f"--workdir={workdir}"], environment)
    return workdir, out, err
