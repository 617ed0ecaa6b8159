"""Agreement between processes: on what each has read, and on what process 0 did."""

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vse_jax.base.errors import InputError


def assert_equal_across_hosts(what: str, facts: Mapping[str, object]) -> None:
    """Raises InputError on every process unless all have the same JSON-able `facts`."""
    if jax.process_count() == 1:
        return
    said = json.dumps([socket.gethostname(), facts], sort_keys=True)
    (host, first), *others = map(json.loads, _gather(said))
    differing = [
        f"{name} ({other.get(name)!r} in process {process} on {its_host}, "
        f"{first.get(name)!r} in process 0 on {host})"
        for process, (its_host, other) in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if other.get(name) != first.get(name)
    ]
    if differing:
        raise InputError(
            f"{what} differs between the processes: {', '.join(differing)}"
        )


def on_process_zero(work: Callable[[], Any]) -> Any:
    """Runs `work` in process 0 alone; returns its JSON-able result on all processes.

    For work that is not worth distributing, as ranking and drawing are: all processes
    learn together that it is done or has failed.

    Raises:
        InputError: on every process, where `work` raised it in process 0.
    """
    if jax.process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    failure: BaseException | None = None
    if jax.process_index() == 0:
        try:
            outcome = {"result": work()}
        except BaseException as error:  # or the others would wait for ever
            failure = error
            line = str(error) if isinstance(error, InputError) else repr(error)
            outcome = {"error": " ".join(line.split())}
    outcome = json.loads(_gather(json.dumps(outcome))[0])
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise InputError(f"process 0: {outcome['error']}")
    return outcome["result"]


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
