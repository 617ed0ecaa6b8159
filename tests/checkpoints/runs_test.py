"""Saving and restoring (kill, resume and full disks: main_test.py)."""

import dataclasses
import functools
import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vse_jax.base.errors import InputError
from vse_jax.checkpoints import runs
from vse_jax.checkpoints.runs import (
    CONVERTED,
    Checkpoints,
    SaveClock,
    TrainProgress,
)


def model(value: float, size: int = 1000, count: int = 12):
    # Twelve layers: restored without care, "10" would come before "2".
    layers = {i: {"w": jnp.full((size,), value + i)} for i in range(count)}
    return {"params": {"layers": layers}, "batch_stats": {}}


small_model = functools.partial(model, count=2)


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def rest(step: int):
    return {"step": jnp.int32(step), "rng": jax.random.key(step)}


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_the_newest_and_the_best_are_kept_and_come_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(model(0.5), rest(3), TrainProgress(3, 3, 90.5, 3))
        checkpoints.save(model(1.0), rest(5), TrainProgress(5, 5, 100.5, 5))
        checkpoints.save(model(1.5), rest(8), TrainProgress(8, 5, 100.5, 5))
        checkpoints.save(model(2.0), rest(10), TrainProgress(10, 5, 100.5, 5))

    assert steps(tmp_path) == [5, 10]
    target = abstract(model(0.0)), abstract(rest(0))
    with Checkpoints(tmp_path) as again:
        assert again.latest_step() == 10
        progress = again.progress()
        latest, optimizer = again.restore_latest(*target)
        best, named = again.restore_best(target[0])
    jax.tree.map(np.testing.assert_array_equal, latest, model(2.0))
    jax.tree.map(np.testing.assert_array_equal, best, model(1.0))
    assert progress == named == TrainProgress(10, 5, 100.5, 5)
    assert int(optimizer["step"]) == 10
    assert optimizer["rng"] == jax.random.key(10)


def test_as_many_as_the_config_says_are_kept_beside_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (3, 5, 8, 10):
            checkpoints.save(
                small_model(1.0), rest(step), TrainProgress(step, 3, 1.0, 3)
            )
    assert steps(tmp_path) == [3, 8, 10]


def test_a_save_is_due_when_its_minutes_have_passed(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def on_process_zero(work):
        asked.append(now[0])
        return work()

    monkeypatch.setattr(runs, "on_process_zero", on_process_zero)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    clock, saved = SaveClock(10.0), []
    for step in range(1, 2001):
        now[0] += 1 if step < 900 else 3  # seconds: the later steps are slower
        if clock.is_due(step):
            clock.restart()
            saved.append(now[0])
    first, slowed, *others = np.diff([0, *saved])
    assert first == 600
    assert slowed < 900
    assert set(others) == {600}
    assert len(asked) == 200  # of 2000 steps
    assert not SaveClock(None).is_due(10**6)


def test_what_a_kill_left_goes_with_the_next_save(tmp_path):
    """The new best was whole, and the ones before it not removed yet."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(5), TrainProgress(5, 5, 1.0, 5))
        checkpoints.save(model(2.0), rest(7), TrainProgress(7, 5, 1.0, 5))
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "checkpoints", before)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(3.0), rest(9), TrainProgress(9, 9, 2.0, 9))
    assert steps(tmp_path) == [9]
    shutil.copytree(before, tmp_path / "checkpoints", dirs_exist_ok=True)
    with Checkpoints(tmp_path) as checkpoints:
        best, progress = checkpoints.restore_best(abstract(model(0.0)))
        assert progress.best_step == 9
        checkpoints.save(model(4.0), rest(11), TrainProgress(11, 9, 2.0, 9))
    jax.tree.map(np.testing.assert_array_equal, best, model(3.0))
    assert steps(tmp_path) == [9, 11]


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(5), TrainProgress(5, 5, 1.0, 5))
        checkpoints.save(model(2.0), rest(7), TrainProgress(7, 5, 1.0, 5))
    shutil.rmtree(tmp_path / "checkpoints/7")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() == TrainProgress(5, 5, 1.0, 5)
        found, optimizer = checkpoints.restore_latest(
            abstract(model(0.0)), abstract(rest(0))
        )
    jax.tree.map(np.testing.assert_array_equal, found, model(1.0))
    assert int(optimizer["step"]) == 5


def test_another_models_checkpoint_is_refused_in_one_line(tmp_path):
    named = r"layers/0/w \(\(1000,\) float32 there, \(7,\) float32 here\)"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(1), TrainProgress(1, 1, 1.0, 1))
        checkpoints.wait()
        with pytest.raises(InputError, match=named) as error:
            checkpoints.restore_best(abstract(model(0.0, size=7)))
    assert "\n" not in str(error.value)


def test_no_checkpoint_yet(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="checkpoints: no best checkpoint; train first"),
    ):
        checkpoints.restore_best(abstract(model(0.0)))


def test_a_save_that_orbax_skips_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(30), TrainProgress(30))
        checkpoints.wait()
        with pytest.raises(InputError, match="step 10 was not saved, because step 30"):
            checkpoints.save(model(2.0), rest(10), TrainProgress(10))


def test_converted_weights_are_the_best_until_a_run_beats_them(tmp_path):
    converted = TrainProgress(best_rsum=1.0, best_step=CONVERTED, best_epoch=3)
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.holds_converted()
        checkpoints.save(model(1.0), None, converted)
        checkpoints.wait()
        assert checkpoints.holds_converted()
        checkpoints.save(model(2.0), rest(7), TrainProgress(7, 7, 2.0, CONVERTED, 3))
        checkpoints.wait()
        assert not checkpoints.holds_converted()
        best, progress = checkpoints.restore_best(abstract(model(0.0)))
        jax.tree.map(np.testing.assert_array_equal, best, model(1.0))
        assert (progress.best_rsum, progress.best_epoch) == (2.0, 3)
        checkpoints.save(model(3.0), rest(9), TrainProgress(9, 9, 4.0, 9, 5))
    assert steps(tmp_path) == [9]


def test_a_run_that_was_stopped_at_its_first_step_has_no_converted_weights(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(0), TrainProgress())
        checkpoints.wait()
        assert not checkpoints.holds_converted()


def test_a_best_that_is_gone_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(15), TrainProgress(15, 15, 5.0, 15))
        checkpoints.save(model(2.0), rest(45), TrainProgress(45, 45, 5.0, 15))
    shutil.rmtree(tmp_path / "checkpoints/15")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"45 says that step 15 was .* remove .* to st"),
    ):
        checkpoints.progress()


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("data"),
        lambda about: about.pop("checksums"),
        lambda about: about.update(from_the_future=1),
    ],
)
def test_another_versions_checkpoint_is_named(tmp_path, change):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model(1.0), rest(5), TrainProgress(5))
    file = tmp_path / "checkpoints/5/data/metadata"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            InputError, match="checkpoints/5: written by another version of vse_jax"
        ),
    ):
        checkpoints.progress()


def test_another_versions_optimizer_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        optimizer = rest(5) | {"mu": jnp.zeros(3)}
        checkpoints.save(model(1.0), optimizer, TrainProgress(5))
        checkpoints.wait()
        for target in (rest(0), rest(0) | {"mu": jnp.zeros(3, jnp.int32)}):
            with pytest.raises(
                InputError,
                match=r"of another version of vse_jax: mu \(\(3,\) float32 th",
            ):
                checkpoints.restore_latest(abstract(model(0.0)), abstract(target))


def restored(folder):
    """The values of `saved`, as an evaluation and a restart read them."""
    target = abstract(small_model(0.0))
    with Checkpoints(folder, read_only=True) as checkpoints:
        latest, optimizer = checkpoints.restore_latest(target, abstract(rest(0)))
        best, progress = checkpoints.restore_best(target)
    step, key = optimizer["step"], jax.random.key_data(optimizer["rng"])
    about = dataclasses.astuple(progress)
    return jax.device_get((latest, step, key, best, about))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(small_model(1.0), rest(5), TrainProgress(5, 5, 1.0, 5, 1))
        checkpoints.save(small_model(2.0), rest(6), TrainProgress(6, 5, 1.0, 5, 1))
    return folder


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture
def tasks_left():
    """Of a restore that fails Orbax leaves tasks that nobody waits for."""
    yield
    gc.collect()  # they complain now, and not in the next test


def orbax_leaves_tasks(test):
    ignored = "ignore::pytest.PytestUnraisableExceptionWarning"
    test = pytest.mark.usefixtures("tasks_left")(test)
    return pytest.mark.filterwarnings(ignored)(test)


@orbax_leaves_tasks
@pytest.mark.parametrize(
    "damage", [half, one_bit, lambda content: b"", lambda content: None]
)
def test_any_damaged_file_is_named_or_does_no_harm(saved, tmp_path, damage):
    """Of every file of a checkpoint: cut, with another bit, emptied, gone."""
    expected, lines = restored(saved), []
    shutil.copytree(saved, tmp_path / "run")
    for file in filter(Path.is_file, saved.rglob("*")):
        name = file.relative_to(saved)
        copy = tmp_path / "run" / name
        content = damage(file.read_bytes())
        copy.unlink() if content is None else copy.write_bytes(content)
        try:
            found = restored(tmp_path / "run")
        except InputError as error:
            lines.append((tmp_path.joinpath("run", *name.parts[:2]), str(error)))
        else:
            jax.tree.map(np.testing.assert_array_equal, found, expected)
        copy.write_bytes(file.read_bytes())
    assert len(lines) > 8
    for folder, line in lines:
        if "another version of vse_jax" in line:  # a bit makes another name of a name
            assert damage is one_bit
            continue
        assert line.startswith(f"{folder}: damaged checkpoint (")
        assert line.endswith("); what to do: docs/files.md")
        assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes."
            ),
            "/checkpoints/5: Cannot allocate memory (RESOURCE_EXHAUSTED: Out of memory "
            "while trying to allocate 64 bytes.); the checkpoint stays as it is: end "
            "what else uses it, or use more devices (config.mesh), and run the same",
        ),
        (
            MemoryError(),
            "/checkpoints/5: Cannot allocate memory; the checkpoint stays as it is",
        ),
        (
            PermissionError(13, "Permission denied", "/disk/file"),
            "/disk/file: Permission denied; the checkpoint stays as it is: let this "
            "user read it, and run the same command again",
        ),
        (
            ValueError(
                'UNKNOWN: Error reading local file "/disk/file": Error reading [source '
                "locations='x.cc:1']: Input/output error [os_error_code='5']"
            ),
            "/disk/file: Input/output error; the checkpoint stays as it is: see to the "
            "disk or the system, and run the same command again",
        ),
        (
            OSError(116, "Stale file handle"),
            "/checkpoints/5: Stale file handle; the checkpoint stays as it is: see to",
        ),
    ],
)
def test_what_the_system_refuses_is_no_damage(saved, monkeypatch, error, line):
    def fail(*_, **__):
        raise RuntimeError("what Orbax says of it") from error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(InputError) as found,
    ):
        checkpoints.restore_best(abstract(small_model(0.0)))
    assert line in str(found.value)
    assert "damaged" not in str(found.value)


def test_a_bug_is_no_damage(saved, monkeypatch):
    def fail(*_, **__):
        raise KeyError("params")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(KeyError, match="params"),
    ):
        checkpoints.restore_best(abstract(small_model(0.0)))


@orbax_leaves_tasks
@pytest.mark.parametrize("name", ["data/metadata", "model/_METADATA", "manifest.ocdbt"])
def test_a_file_that_cannot_be_opened_is_named(saved, tmp_path, name):
    """Whoever meets it first, Orbax, Tensorstore or we: here a link to itself."""
    shutil.copytree(saved, tmp_path / "run")
    (file,) = (tmp_path / "run/checkpoints/5").glob(
        name if "/" in name else f"model/{name}"
    )
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(InputError) as error:
        restored(tmp_path / "run")
    assert str(error.value).startswith(
        f"{file}: Too many levels of symbolic links; the "
    )


def test_a_best_that_a_run_replaces_meanwhile(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    with Checkpoints(tmp_path / "run", read_only=True) as reader:
        with Checkpoints(tmp_path / "run") as writer:
            writer.save(small_model(2.0), rest(7), TrainProgress(7, 7, 2.0, 7, 2))
        assert steps(tmp_path / "run") == [7]
        best, progress = reader.restore_best(abstract(small_model(0.0)))
    assert progress.best_rsum == 2.0
    jax.tree.map(np.testing.assert_array_equal, best, small_model(2.0))


def test_a_bug_is_no_full_disk(tmp_path):
    """Only what the system says of a file is called a failed save."""
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(AttributeError, match="object"),
    ):
        checkpoints.save({"params": object()}, rest(1), TrainProgress(1))


def test_a_failed_last_save_still_ends_orbax(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    closed = []
    monkeypatch.setattr(
        ocp.CheckpointManager, "close", lambda self: closed.append(self)
    )
    with pytest.raises(InputError, match="No space left"), Checkpoints(tmp_path):
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    assert len(closed) == 1
