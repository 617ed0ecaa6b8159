"""A context in which every operation is its plain version, NAME_reference.

For programs that are not compiled by XLA (checkpoints/onnx_program.py): what is tuned
to XLA's platforms has no meaning there, and takes primitives that others lack.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_PLAIN = ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Has what is traced inside, outside of any `jax.jit`, take the plain versions."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain() -> bool:
    """Whether the caller is inside of `plain`."""
    return _PLAIN.get()
