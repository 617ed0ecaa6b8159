"""Threads that a server's requests wait for, in a queue of bounded length."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """As many calls wait as may."""


class Workers:
    """Runs calls in `threads` threads; at most `queue` more of them wait."""

    def __init__(self, threads: int, queue: int):
        self._threads = ThreadPoolExecutor(threads)
        self._count = threads + queue
        self._places = threading.BoundedSemaphore(self._count)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The call's result. When the awaiting task is cancelled, so is a waiting call;
        one that has begun keeps its place until it ends.

        Raises:
            QueueFull: at once; the function is not called.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull
        try:
            future: Future[T] = self._threads.submit(function, *arguments)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Drops the calls that wait, and takes no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def ended(self, seconds: float) -> bool:
        """Whether, after `stop`, those that had begun end within this time."""
        ends, places = time.monotonic() + seconds, 0
        while places < self._count:
            left = max(0.0, ends - time.monotonic())
            if not self._places.acquire(timeout=left):
                break
            places += 1
        if places:
            self._places.release(places)
        return places == self._count
