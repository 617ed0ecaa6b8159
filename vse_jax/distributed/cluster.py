"""Several processes of a run: they connect, and end together.

A computation over all devices waits for every process, so a process that is missing or
dies would leave the others waiting. Each of them ends with one line on stderr instead,
and with the exit code that asks for the same command again.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from absl import logging

from vse_jax.base import progress
from vse_jax.base.errors import InputError
from vse_jax.distributed import preemption

_CONNECT_S = 300  # until every process has come
_SILENCE_S = 100  # without a sign of life, after which a process counts as dead
_LEAVE_S = 3  # that process 0 waits for others that fail as well
_LOST = (
    "error: another process of this run has ended, hangs or cannot be reached; run the "
    "same command again on all: training goes on from the last checkpoint"
)


def connect(
    coordinator: str | None, process_id: int | None, num_processes: int | None
) -> None:
    """Joins the processes of this run; call it before jax touches a device.

    With the three arguments by them; without, where a cluster started several processes
    (SLURM, TPU, Kubernetes, Open MPI); alone otherwise, or when `num_processes` is 1.
    VSE_JAX_TIMEOUT (seconds) replaces the times to wait: 300 for the others to come,
    100 for a sign of life from one that hangs.

    Raises:
        InputError: arguments that do not fit, or the others cannot be reached.
    """
    if num_processes == 1:
        return
    if coordinator is None and process_id is None and num_processes is None:
        if not started_by_cluster():
            return
    elif coordinator is None or process_id is None or num_processes is None:
        raise InputError(
            "--coordinator, --process_id, --num_processes: give all three, or none "
            "where SLURM, Kubernetes or a TPU pod starts the processes"
        )
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f"--coordinator={coordinator}: not HOST:PORT")
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process_id={process_id}: not in 0 … {num_processes - 1}"
            )
    given = os.environ.get("VSE_JAX_TIMEOUT") or "0"
    if not given.isdecimal():
        raise InputError(f"VSE_JAX_TIMEOUT={given}: not a number of seconds")
    seconds = int(given)
    wait = seconds or _CONNECT_S
    where = coordinator or "cluster"
    # JAX's service would take SIGTERM from a process that never polls for it.
    jax.config.update("jax_enable_preemption_service", preemption.is_listening())
    line = (
        f"error: {where}: the {num_processes or ''} processes of this run did not all "
        f"come together within {wait} s"
    )
    # JAX aborts the process when its own time is over, so ours is shorter.
    with _deadline(wait, line):
        try:
            jax.distributed.initialize(
                coordinator_address=coordinator,
                num_processes=num_processes,
                process_id=process_id,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=wait + 60,
                heartbeat_timeout_seconds=seconds or _SILENCE_S,
            )
        except (RuntimeError, ValueError) as error:  # no such host, port in use, …
            raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    # JAX aborts a process whose service has lost another one. (Its client would take a
    # callback instead, but calls it with what Python cannot be given.) This handler
    # replaces the one that dumps all stacks.
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    if jax.process_index() > 0:  # process 0 speaks for all
        logging.set_verbosity(logging.WARNING)
        progress.hide()


def started_by_cluster() -> bool:
    """Whether a cluster started this process as one of several, or as a TPU host's.

    JAX finds the others; this says whether to ask it. JAX's own test
    (`ClusterEnv.is_env_present`) is private, takes a job of one task or a lone pod for
    a cluster, and asks Google's metadata server.
    """
    environment = os.environ
    if "SLURM_STEP_NODELIST" in environment:  # a task of srun
        return int(environment.get("SLURM_NTASKS", "1")) > 1
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]) > 1
    if "KUBERNETES_SERVICE_HOST" in environment:
        # A pod without an index is alone and may not ask the cluster.
        indexed = "JOB_COMPLETION_INDEX" in environment
        return indexed and importlib.util.find_spec("kubernetes") is not None
    on_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    return on_tpu and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def _deadline(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with `line` and code 1 unless the block is done in time."""

    def give_up() -> None:
        _print_error(line)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    _print_error(_LOST)
    os._exit(preemption.EXIT_CODE)


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):
        logging.flush()
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """Ends a failed process at once, so that the others notice.

    A normal exit waits for all processes, which would never come after a failure.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, SystemExit) and error.code != 1:
            raise  # preempted, as all processes are
        code = 1
        if is_peer_failure(error):
            _print_error(_LOST)
            code = preemption.EXIT_CODE
        elif not isinstance(error, SystemExit):  # which has printed its line
            traceback.print_exc()
        if jax.process_index() == 0:
            # The others may be failing as well. Process 0 runs JAX's service; without
            # it JAX aborts them before they can say why.
            time.sleep(_LEAVE_S)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_peer_failure(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, says that another process is gone.

    JAX has no exception type for it; the message names the transport.
    """
    signs = ("gloo", "nccl", "unavailable", "deadline_exceeded", "coordination")
    while error is not None and jax.process_count() > 1:
        text = str(error).lower()
        if isinstance(error, jax.errors.JaxRuntimeError) and any(
            sign in text for sign in signs
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
