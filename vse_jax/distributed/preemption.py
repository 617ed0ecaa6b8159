"""SIGTERM: all processes stop at the same moment, save, and exit with code 75."""

import os
import signal

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again


class Preempted(SystemExit):
    """SIGTERM came; unless it is caught, the program ends with `EXIT_CODE`."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _State:
    listening = False
    noticed = False  # this process got the signal
    checks = 0  # made so far, the same number in all processes


def listen() -> None:
    """From here on SIGTERM only takes note; the first `check` after it acts."""

    def note(*_) -> None:
        _State.noticed = True

    signal.signal(signal.SIGTERM, note)
    _State.listening = True


def is_listening() -> bool:
    """Whether `listen` was called: SIGTERM ends this process at a `check` only."""
    return _State.listening


def connected() -> None:
    """Call it when the processes of a run have found each other.

    Of a run that a cluster started, JAX's service listens to SIGTERM from then on, and
    tells the others of it. What came before is sent to it again.
    """
    if _State.noticed:
        os.kill(os.getpid(), signal.SIGTERM)


def check() -> None:
    """Raises `Preempted` once SIGTERM has come, on all processes at the same call.

    All processes have to call this at the same places of their work: JAX's service
    counts the calls and has them act at one that none of them has reached yet.
    """
    if not _State.listening:
        return
    # Not above: `listen` is wanted before the seconds that importing jax takes.
    import jax  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    _State.checks += 1
    # The service takes the signal from us, also in a run of one process.
    if jax.distributed.is_initialized():
        reached = multihost_utils.reached_preemption_sync_point(_State.checks)
    else:
        reached = _State.noticed
    if reached:
        raise Preempted
