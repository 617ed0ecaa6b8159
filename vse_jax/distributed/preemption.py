"""SIGTERM: all processes stop at the same step, save, and exit with code 75."""

import os
import signal

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again


class Preempted(SystemExit):
    """SIGTERM arrived; uncaught, it ends the program with `EXIT_CODE`."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _State:
    listening = False
    noticed = False  # this process received the signal
    checks = 0  # calls so far, equally many in all processes


def listen() -> None:
    """From here on SIGTERM only sets a flag; the next `check` acts on it."""
    signal.signal(signal.SIGTERM, lambda *_: setattr(_State, "noticed", True))
    _State.listening = True


def is_listening() -> bool:
    """Whether SIGTERM ends this process at a `check` only."""
    return _State.listening


def connected() -> None:
    """Call it when the processes of a run are connected.

    JAX's service has then replaced our handler, and tells the other processes of a
    SIGTERM. One that arrived earlier is sent again.
    """
    if _State.noticed:
        os.kill(os.getpid(), signal.SIGTERM)


def check() -> None:
    """Raises `Preempted` after SIGTERM, on all processes at the same call.

    All processes call this at the same points of their work: JAX's service counts the
    calls and picks one that no process has reached yet.
    """
    if not _State.listening:
        return
    # Imported here: `listen` runs before the seconds that importing jax takes.
    import jax  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    _State.checks += 1
    # JAX replaces our handler, in a run of one process as well.
    if jax.distributed.is_initialized():
        reached = multihost_utils.reached_preemption_sync_point(_State.checks)
    else:
        reached = _State.noticed
    if reached:
        raise Preempted
