"""Several processes: they find each other, agree on their input, and end together.

A computation over all devices waits for every process, so one that is missing, differs
or dies would leave the others waiting: each of these ends in one line on stderr.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from absl import logging
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vse_jax.base import progress
from vse_jax.base.config import flat_fields
from vse_jax.base.errors import InputError
from vse_jax.data.captions import CaptionTokens
from vse_jax.data.layout import Split

_CONNECT_S = 300  # until every process has come
_SILENCE_S = 100  # without a sign of life, after which a process counts as dead
_LEAVE_S = 5  # that a failing process waits for others that fail as well
_LOST = (
    "error: another process of this run has ended or hangs; run the same command again "
    "on all: training goes on from the last checkpoint"
)
# Hosts may keep these elsewhere, or have other cores; what is read is compared.
HOSTS_OWN = (
    "data.root",
    "data.source",
    "data.export_to",
    "data.cache",
    "data.workers",
    "data.num_workers",
    "image.weights",
    "text.weights",
    "text.vocab",
    "eval.ensemble",
    "eval.plausible_matches",
)
_leaving = threading.Event()


def connect(
    coordinator: str | None, process_id: int | None, num_processes: int | None
) -> None:
    """Joins the processes of this run; call it before jax touches a device.

    With the three arguments by them; without, where JAX detects a cluster that started
    several processes (SLURM, TPU, Kubernetes, Open MPI); alone otherwise, or when
    `num_processes` is 1. VSE_JAX_TIMEOUT (seconds) replaces the times to wait: 300 for
    the others to come, 100 for a sign of life from one that hangs.

    Raises:
        InputError: arguments that do not fit, or the others cannot be reached.
    """
    given = (coordinator, process_id, num_processes)
    if num_processes == 1 or (given == (None, None, None) and not _detected()):
        return
    if coordinator is not None or process_id is not None or num_processes is not None:
        _check_arguments(*given)
    given_time = os.environ.get("VSE_JAX_TIMEOUT") or "0"
    if not given_time.isdecimal():
        raise InputError(f"VSE_JAX_TIMEOUT={given_time}: not a number of seconds")
    seconds = int(given_time)
    wait = seconds or _CONNECT_S
    # preemption.py listens to SIGTERM; JAX's own service would take the signal away.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts the process when its time is over, so ours is over earlier.
    timer = threading.Timer(wait, _give_up, [coordinator, num_processes, wait])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *(coordinator, num_processes, process_id),
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=seconds or _SILENCE_S,
        )
    except (RuntimeError, ValueError) as error:  # no such host, port in use, …
        reason = " ".join(str(error).split())
        raise InputError(f"{coordinator or 'cluster'}: {reason}") from None
    finally:
        timer.cancel()
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    if jax.process_index() == 0:
        logging.info(
            "%d processes, %d devices", jax.process_count(), jax.device_count()
        )
    else:  # process 0 speaks for all
        logging.set_verbosity(logging.WARNING)
        progress.hide()


def _detected() -> bool:
    """Whether a cluster started this process as one of several."""
    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method:
            continue
        if cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in os.environ:
            continue  # a pod on its own, which may not ask the cluster about itself
        if cluster.is_env_present():
            try:
                return cluster.get_process_count() > 1
            except Exception as error:  # each kind of cluster has types of its own
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{cluster.name}: cannot tell how many processes this run has "
                    f"({reason}); give --coordinator, --process_id, --num_processes"
                ) from None
    return False


def _check_arguments(coordinator, process_id, num_processes) -> None:
    if None in (coordinator, process_id, num_processes):
        raise InputError(
            "--coordinator, --process_id, --num_processes: give all three, or none "
            "where SLURM, Kubernetes or a TPU pod starts the processes"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={coordinator}: not HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id={process_id}: not in 0 … {num_processes - 1}")


def _give_up(coordinator, num_processes, seconds) -> None:
    _print_error(
        f"error: {coordinator or 'cluster'}: the {num_processes or ''} processes of "
        f"this run did not all come together within {seconds} s"
    )
    os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_signal) -> None:
    """JAX aborts when process 0 is gone or another one gives no sign of life.

    A crash of this process's own C++ code ends here too: its message stands above.

    It does so from a thread of its own; the main thread may hang in a collective for
    ever, so no Python exception would help. Python's `signal` cannot stop an abort.
    """
    if not _leaving.is_set():
        _print_error(_LOST)
    os._exit(1)


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):
        logging.flush()
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """Ends a failed process at once, so that the others can notice.

    A normal end waits for all processes; after a failure they would never come.
    """
    try:
        yield
    except BaseException as error:
        if distributed.global_state.client is None:
            raise
        if isinstance(error, SystemExit) and error.code != 1:
            raise  # preempted: all processes leave
        if is_loss(error):
            _print_error(_LOST)
            os._exit(1)
        if not isinstance(error, SystemExit):  # which has printed its line
            traceback.print_exc()
        _leaving.set()
        with contextlib.suppress(Exception):
            # They may be failing as well: if process 0 went first, JAX would abort the
            # others before they have said why.
            distributed.global_state.client.wait_at_barrier("leave", _LEAVE_S * 1000)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def is_loss(error: BaseException | None) -> bool:
    """Whether this, or what led to it, was raised because another process is gone."""
    signs = ("gloo", "nccl", "unavailable", "deadline_exceeded", "coordination")
    while error is not None and jax.process_count() > 1:
        text = str(error).lower()
        if isinstance(error, jax.errors.JaxRuntimeError) and any(
            sign in text for sign in signs
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_alone(what: str) -> None:
    """Raises InputError if `what`, which is work for one process, was given several."""
    if jax.process_count() > 1:
        raise InputError(
            f"{what} is for one process, not {jax.process_count()}; --num_processes=1 "
            "where a cluster starts several"
        )


def check_same_config(config: ConfigDict, mode: str) -> None:
    """Raises InputError on every process unless all run the same thing."""
    fields = {"mode": mode} | flat_fields(config)
    check_same("config", {k: v for k, v in fields.items() if k not in HOSTS_OWN})


def check_same_data(split: Split, tokens: CaptionTokens) -> None:
    """Raises InputError on every process unless all read the same split.

    Compares ids, captions and what the vocabulary makes of them, not the pictures.
    """
    if jax.process_count() == 1:
        return
    contents = {
        "ids": "\n".join(split.image_ids).encode(),
        "captions": "\n".join(split.captions).encode(),
        "tokens": tokens.ids.tobytes() + tokens.offsets.tobytes(),
    }
    facts = {
        f"{split.name} {name}": hashlib.sha256(content).hexdigest()[:12]
        for name, content in contents.items()
    }
    check_same("data", facts)


def check_same(what: str, facts: Mapping[str, object]) -> None:
    """Raises InputError on every process unless all have the same JSON-able `facts`."""
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, _gather(json.dumps(facts, sort_keys=True)))
    differing = [
        f"{name} ({theirs.get(name)!r} in process {process}, "
        f"{first.get(name)!r} in process 0)"
        for process, theirs in enumerate(others, start=1)
        for name in sorted(first.keys() | theirs.keys())
        if theirs.get(name) != first.get(name)
    ]
    if differing:
        raise InputError(
            f"{what} differs between the processes: {', '.join(differing)}"
        )


def _gather(text: str) -> list[str]:
    """Every process's `text`, in their order."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]
