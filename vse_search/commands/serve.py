"""--mode=serve: a page and a JSON API that find the pictures of an index."""

import contextlib
import os
import signal
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import vse_jax
from vse_jax import Config, InputError, printable
from vse_search import client
from vse_search.encoder import Encoder
from vse_search.opening import index_folder, opened

_END_S = 1.5  # for what computes when the connections are closed


def serve(config: Config, workdir: Path) -> None:
    """Serves config.search.index, or W/index, until SIGTERM or Ctrl-C.

    Raises:
        InputError: no index, one of another model, an address that cannot be used, or
            packages that are not installed.
    """
    index = index_folder(config, workdir)
    serve_index(config.search, index, lambda: vse_jax.model_of(config, workdir))


def serve_index(options: Config, index: Path, load: Callable[[], Encoder]) -> None:
    """Serves an index with the model that `load` gives, in the main thread.

    Raises:
        InputError: see `serve`.
    """
    try:
        # Optional packages; nothing else needs them.
        from vse_search import guard, listening, server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InputError(
            f"--mode=serve: no package {error.name!r}; make setup-search"
        ) from None
    host, token = options.host.strip("[]"), options.token
    if not guard.is_local(host) and not token:
        raise InputError(
            f"config.search.host: {host} can be reached from other machines; set "
            "config.search.token, too"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        listener = stack.enter_context(listening.bound(host, options.port))
        found = stack.enter_context(opened(options, index, load))
        url = _url(host, listener.getsockname()[1])
        answers = server.Server(found, options, listener.getsockname()[1])
        answers.warm_up()
        stack.callback(_end, answers)

        def ready() -> None:
            stack.enter_context(client.announced(index, url, token, options.engine))
            folder = printable(str(found.store.folder))
            pictures = f"{found.store.count():,} pictures of {folder}"
            print(f"{url} finds {pictures}; Ctrl-C ends it", flush=True)
            if options.open:
                webbrowser.open(url)

        listening.run(answers.app(), listener, ready)


def _url(host: str, port: int) -> str:
    """As this machine reaches the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


def _end(answers) -> None:
    """Python waits for its threads, and a machine that shuts down does not: the decoder
    of a huge picture takes longer than it may."""
    if not answers.close(_END_S):
        sys.stdout.flush()
        os._exit(0)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block and the program, with code 0."""

    def end(*_) -> None:
        raise SystemExit(0)

    before = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
