"""A process for each side: one computes while the other one waits."""

import contextlib
import gc
import importlib
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_LONG_WAIT = 0.5  # seconds: threads may spin for some milliseconds after their work


class Worker(NamedTuple):
    """This end of the connection to one side's process."""

    connection: Connection

    def make_ready(self, row: str) -> tuple[float | None, str]:
        """Builds and warms up a row; returns its FLOP and the variant kept."""
        self.connection.send(row)
        return self.connection.recv()

    def turn(self) -> tuple[float, float]:
        """Measures the row once: (seconds, cores that it used since its last turn).

        Raises:
            EOFError: the process died; its traceback is on stderr.
        """
        self.connection.send(None)
        return self.connection.recv()


@contextlib.contextmanager
def started(module: str) -> Iterator[Worker]:
    """The process of our_rows or pytorch_rows, until the block ends."""
    context = multiprocessing.get_context("spawn")  # neither side inherits threads
    connection, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, module))
    process.start()
    other.close()
    try:
        yield Worker(connection)
    finally:
        connection.close()
        process.join()


def _serve(connection: Connection, module: str) -> None:
    """Answers requests, a row to make ready or None for a turn, until it is closed."""
    side = importlib.import_module(f"benchmarks.{module}")
    side.prepare()
    ready: Any = None
    ended, spent = time.perf_counter(), time.process_time()
    while True:
        try:
            row = connection.recv()
        except EOFError:
            return
        if row is not None:
            ready = None  # the last row's memory goes first
            gc.collect()
            ready = side.ROWS[row]()
            connection.send((ready.flops, ready.variant))
        else:
            waited, used = time.perf_counter() - ended, time.process_time() - spent
            idle = used / waited if waited > _LONG_WAIT else 0.0
            connection.send((ready.turn(), idle))
        ended, spent = time.perf_counter(), time.process_time()
