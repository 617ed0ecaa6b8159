"""Programs compiled in threads, ahead of their first use."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

from absl import logging
from jax.stages import Compiled, Lowered

_THREADS = 4


class CompileCache:
    """Compiled programs by key; each is compiled once, in a thread, and logged.

    with CompileCache() as programs:
        programs.start("encode_images", key, lower)
        ...
        programs.get("encode_images", key, lower)(arguments)

    XLA compiles in parallel. Tracing holds the interpreter, so programs are traced one
    by one: the first is ready sooner.
    """

    def __init__(self):
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="compile")
        self._made: dict[Hashable, Future[Compiled]] = {}
        self._starting = threading.Lock()
        self._tracing = threading.Lock()

    def __enter__(self) -> "CompileCache":
        return self

    def __exit__(self, *_) -> None:
        self._threads.shutdown(cancel_futures=True)

    def start(self, name: str, key: Hashable, lower: Callable[[], Lowered]) -> None:
        """Starts to compile what `lower()` returns, unless the key is known."""
        with self._starting:
            if key not in self._made:
                self._made[key] = self._threads.submit(self._compile, name, lower)

    def get(self, name: str, key: Hashable, lower: Callable[[], Lowered]) -> Compiled:
        """The key's program, as soon as it is compiled."""
        self.start(name, key, lower)
        return self._made[key].result()

    def _compile(self, name: str, lower: Callable[[], Lowered]) -> Compiled:
        with self._tracing:
            start = time.perf_counter()
            lowered = lower()
            traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - traced
        logging.info(
            "compiled %s in %.1f s, traced in %.1f s", name, seconds, traced - start
        )
        return compiled
