"""SIGTERM: all processes stop at the same moment, save, and exit with code 75."""

import functools
import signal

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again


class Preempted(SystemExit):
    """SIGTERM came; unless it is caught, the program ends with `EXIT_CODE`."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _State:
    listening = False
    noticed = False  # this process got the signal
    answer = None  # to the question of the last `check`: did any?


def listen() -> None:
    """From here on SIGTERM only takes note; the first `check` after it acts."""

    def note(*_) -> None:
        _State.noticed = True

    signal.signal(signal.SIGTERM, note)
    _State.listening = True


def check() -> None:
    """Raises `Preempted` once SIGTERM has come, on all processes at the same call.

    All processes have to call this at the same places of their work. With several it
    asks in one call and acts in the next, so that nobody waits for the answer.
    """
    if not _State.listening:
        return
    import jax  # not above: `listen` is wanted before the seconds that this takes

    if jax.process_count() == 1:
        if _State.noticed:
            raise Preempted
        return
    answer, _State.answer = _State.answer, _any_noticed(_State.noticed)
    if answer is not None and bool(answer):
        raise Preempted


def _any_noticed(noticed: bool):
    import jax
    import numpy as np

    sharding, ask = _question()
    here = np.full(jax.local_device_count(), noticed)
    return ask(jax.make_array_from_process_local_data(sharding, here))


@functools.cache
def _question():
    """(sharding of one bool for each device, the jitted question)."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(jax.devices(), ("all",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    ask = jax.jit(jax.numpy.any, out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("all")), ask
