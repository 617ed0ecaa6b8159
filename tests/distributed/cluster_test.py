"""Two real processes with two CPU devices each, as users start them."""

import fcntl
import json
import shutil
import signal
import socket

import numpy as np
import pytest

from tests.helpers.programs import (
    free_port,
    one_line_error,
    rows,
    run,
    start,
    wait_for,
)
from vse_jax.base.errors import InputError
from vse_jax.distributed import cluster

pytestmark = pytest.mark.system

STEPS = 10
LOST = "error: another process of this run has ended, hangs or cannot be reached"


@pytest.fixture(scope="session")
def two_devices(environment):
    return {
        **environment,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
        + environment["XLA_FLAGS"],
        "VSE_JAX_TIMEOUT": "60",  # to come together, on a machine with other work
    }


@pytest.fixture(scope="session")
def args(tiny_root):
    return [
        f"--config=tests/helpers/tiny.py:{tiny_root}",
        f"--config.max_steps={STEPS}",
        # With seed 0 rounding decides the sign of an activation; losses of one process
        # and of two then drift apart, by 6e-5 at step 9.
        "--config.seed=1",
        "--config.checkpoint.every_steps=2",
        "--config.eval.batch_size=24",  # leaves a rest of images and of captions
        "--config.text.ffn=2048",  # large enough to be sharded by fsdp
    ]


def start_pair(args, environment, extra=((), ())):
    """Starts both; `extra` holds each one's own arguments."""
    ours = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [
        start([*args, *ours, f"--process_id={i}", *extra[i]], environment)
        for i in range(2)
    ]


def finish(processes, codes=(0, 0)) -> list[str]:
    """Waits; returns what each wrote to stderr."""
    try:
        results = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = tuple(process.returncode for process in processes)
    assert found == tuple(codes), results
    return [err for _, err in results]


def send(number, process, processes, workdir):
    """Sends a signal to one of them as soon as there is a new checkpoint."""
    checkpoints = workdir / "checkpoints"
    before = {path.name for path in checkpoints.glob("*")}

    def saved():
        names = {path.name for path in checkpoints.glob("*")} - before
        return any(name.isdecimal() for name in names)

    if not wait_for(saved, processes[0], seconds=600):
        finish(processes, ("a checkpoint", "before the end"))
    processes[process].send_signal(number)


def losses(workdir) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in rows(workdir) if len(row) == 4}


@pytest.fixture(scope="session")
def trained_by_two(args, two_devices, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "two"
    errors = finish(start_pair([*args, f"--workdir={workdir}"], two_devices))
    assert "4 × cpu" in errors[0]
    assert "processes: 2" in errors[0]
    assert "step" not in errors[1]  # process 0 speaks for both
    return workdir


def test_training_equals_one_process(trained_by_two, args, two_devices, tmp_path):
    four = two_devices["XLA_FLAGS"].replace("=2", "=4")
    run([*args, f"--workdir={tmp_path}"], two_devices | {"XLA_FLAGS": four})
    expected, found = losses(tmp_path), losses(trained_by_two)
    assert list(found) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_evaluation_equals_one_process(trained_by_two, environment, tmp_path):
    two = json.loads((trained_by_two / "eval_test.json").read_text())
    workdir = tmp_path / "run"
    shutil.copytree(trained_by_two, workdir)
    # Nothing remains of 32 images and 160 captions in batches of 32.
    batch = "--config.eval.batch_size=32"
    run([f"--workdir={workdir}", "--mode=eval", batch], environment)
    assert json.loads((workdir / "eval_test.json").read_text()) == two


def test_one_process_goes_on_from_their_checkpoint(
    trained_by_two, args, environment, tmp_path
):
    shutil.copytree(trained_by_two, tmp_path / "one")
    more = [f"--config.max_steps={STEPS + 1}", f"--workdir={tmp_path / 'one'}"]
    _, err = run([*args, *more], environment)
    assert f"resumed from step {STEPS}" in err
    assert list(losses(tmp_path / "one")) == list(range(1, STEPS + 2))


def kill_one(victim, args, environment, workdir):
    """Kills one of a pair after its next checkpoint; the other one has to end, too."""
    soon = environment | {"VSE_JAX_TIMEOUT": "20"}  # seconds without a sign of life
    processes = start_pair([*args, f"--workdir={workdir}"], soon)
    send(signal.SIGKILL, victim, processes, workdir)
    outputs = [process.communicate(timeout=600) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[victim] == -signal.SIGKILL
    code, (_, err) = codes[1 - victim], outputs[1 - victim]
    assert code == 75, err
    assert err.splitlines()[-1].startswith(LOST), err


@pytest.mark.slow
def test_a_lost_first_process_ends_the_other_one(args, two_devices, tmp_path):
    """JAX's service runs in the first one, and dies with it."""
    kill_one(0, args, two_devices, tmp_path / "run")


def test_stopped_then_killed_then_finished_under_slurm(
    trained_by_two, args, two_devices, tmp_path
):
    """One run in three starts; SLURM's has its large parameters in four parts."""
    workdir = tmp_path / "run"
    processes = start_pair([*args, f"--workdir={workdir}"], two_devices)
    send(signal.SIGTERM, 1, processes, workdir)
    errors = finish(processes, (75, 75))
    assert "SIGTERM: stopped after step" in errors[0]
    stopped = len(losses(workdir))

    kill_one(1, args, two_devices, workdir)
    whole = list(losses(trained_by_two).items())
    reached = list(losses(workdir).items())
    assert stopped < len(reached) < STEPS
    assert reached == whole[: len(reached)]  # bit by bit

    slurm = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    processes = [
        start(
            [*args, f"--workdir={workdir}", "--config.mesh.fsdp=4"],
            {**two_devices, **slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]
    errors = finish(processes)
    assert "resumed from step" in errors[0]
    found, expected = losses(workdir), losses(trained_by_two)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_other_data_or_another_config(
    trained_by_two, args, two_devices, tiny_root, tmp_path
):
    """Process 1 differs: one line from both, before anything is computed.

    (What else is compared, and how it is named: agreement_test.py.)
    """
    root, run = tmp_path / "tiny", f"--workdir={tmp_path / 'run'}"
    shutil.copytree(tiny_root, root)
    shutil.copytree(tiny_root.parent / "vocab", tmp_path / "vocab")
    captions = root / "precomp" / "train_caps.txt"
    captions.write_text(captions.read_text().replace("drawn", "seen"))
    host = socket.gethostname()
    margin = f"loss.margin (0.3 in process 1 on {host}, 0.2 in process 0 on {host})"
    for others, message in (
        (["--config.loss.margin=0.3"], f"config differs: {margin}"),
        ([f"--config.data.root={root}"], "data differs: train captions"),
    ):
        processes = start_pair([*args, run], two_devices, ((), tuple(others)))
        expected = message.replace("differs", "differs between the processes")
        for err in finish(processes, (1, 1)):
            assert err.splitlines()[-1].startswith(f"error: {expected}"), err


def test_a_folder_that_another_run_has_ends_both(args, two_devices, tmp_path):
    held = "another process (pid 4711 on elsewhere, since noon) trains in this folder"
    lock = tmp_path / "lock"
    lock.write_text('{"pid": 4711, "host": "elsewhere", "since": "noon"}')
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        processes = start_pair([*args, f"--workdir={tmp_path}"], two_devices)
        first, second = finish(processes, (1, 1))
    assert first.splitlines()[-1].startswith(f"error: {tmp_path}: {held}"), first
    assert f"error: process 0: {tmp_path}: {held}" in second.splitlines()[-1], second
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_coordinator_that_never_answers(args, two_devices, tmp_path):
    absent = f"--coordinator=127.0.0.1:{free_port()}"
    args = [*args, f"--workdir={tmp_path}", absent, "--num_processes=2"]
    soon = two_devices | {"VSE_JAX_TIMEOUT": "3"}
    line = one_line_error([*args, "--process_id=1"], soon)
    assert "did not all come together within 3 s" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 2), "give all three"),
        (("host:1", 0, None), "give all three"),
        ((None, 0, 2), "give all three"),
        (("host", 0, 2), "--coordinator=host: not HOST:PORT"),
        (("host:99999", 0, 2), "not HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2: not in 0 … 1"),
    ],
)
def test_flags_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        cluster.connect(*arguments)


def test_a_time_that_is_no_number(monkeypatch):
    monkeypatch.setenv("VSE_JAX_TIMEOUT", "5m")
    with pytest.raises(InputError, match="VSE_JAX_TIMEOUT=5m"):
        cluster.connect("host:1", 0, 2)


def test_alone_without_a_cluster(monkeypatch):
    """No waiting on a laptop, in a pod on its own, or in a job of one task."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    slurm = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    for name, value in zip(slurm, ("7", "localhost", "1", "0", "0"), strict=True):
        monkeypatch.setenv(f"SLURM_{name}", value)
    cluster.connect(None, None, None)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert cluster.started_by_cluster()
    cluster.connect(None, None, 1)  # told so
    for name in slurm:
        monkeypatch.delenv(f"SLURM_{name}")
    assert not cluster.started_by_cluster()  # a pod without an index
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    assert cluster.started_by_cluster()
