"""A process for each side: one computes while the other one waits."""

import gc
import importlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

_LONG_WAIT = 0.5  # seconds: threads may spin for some milliseconds after their work


class Worker:
    """One side's process.

    Args:
        module: our_rows or pytorch_rows.
    """

    def __init__(self, module: str):
        context = multiprocessing.get_context("spawn")  # neither side inherits threads
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, module))
        self._process.start()
        other.close()
        self.module = module

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join()

    def make_ready(self, name: str) -> tuple[float | None, str]:
        """Builds and warms up a row; returns its FLOP and the variant kept."""
        return self._ask("make_ready", name)

    def turn(self) -> tuple[float, float]:
        """Measures the row once: (seconds, cores that it used since its last turn).

        Raises:
            EOFError: the process died; its traceback is on stderr.
        """
        return self._ask("turn", None)

    def _ask(self, request: str, argument: str | None) -> Any:
        self._connection.send((request, argument))
        return self._connection.recv()


def _serve(connection: Connection, module: str) -> None:
    """Answers requests until the other end closes."""
    side = importlib.import_module(f"benchmarks.{module}")
    side.prepare()
    ready: Any = None
    ended, spent = time.perf_counter(), time.process_time()
    while True:
        try:
            request, name = connection.recv()
        except EOFError:
            return
        if request == "make_ready":
            ready = None  # the last row's memory goes first
            gc.collect()
            ready = side.ROWS[name]()
            connection.send((ready.flops, ready.variant))
        else:
            waited, used = time.perf_counter() - ended, time.process_time() - spent
            idle = used / waited if waited > _LONG_WAIT else 0.0
            connection.send((ready.turn(), idle))
        ended, spent = time.perf_counter(), time.process_time()
