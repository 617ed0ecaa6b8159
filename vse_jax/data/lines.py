"""The lines of a text file in one buffer: ten million captions are two arrays."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np
from jaxtyping import Int64

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, decoded, unreadable

_CHUNK = 2**24  # bytes


class Lines(Sequence[str]):
    """Lines without the spaces around them; a slice of them holds its own copy.

    Attributes:
        buffer: all lines in UTF-8, a newline behind each.
        ends: where those newlines are [lines].
    """

    def __init__(self, buffer: bytearray, ends: Int64[np.ndarray, " lines"]):
        self.buffer, self.ends = buffer, ends

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Lines":
        """Those lines, which hold no line breaks."""
        return cls._joined(["".join(f"{line}\n" for line in lines).encode()])

    @classmethod
    def read(cls, path: AnyPath) -> "Lines":
        """The lines of a UTF-8 text file, whichever line ends it has.

        Raises:
            InputError: no such file, an empty one, or a line that is not UTF-8.
        """
        try:
            with path.open("rb") as file:
                found = cls._joined(_stripped(file.read, path))
        except InputError:
            raise
        except Exception as error:  # storage services have types of their own
            raise unreadable(path, error) from None
        if not found:
            raise InputError(f"{path}: empty")
        return found

    @classmethod
    def _joined(cls, parts: Iterable[bytes]) -> "Lines":
        buffer, ends = bytearray(), [np.zeros(0, np.int64)]
        for part in parts:
            found = np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n"))
            ends.append(found + len(buffer))
            buffer += part
        return cls(buffer, np.concatenate(ends))

    def _start(self, line: int) -> int:
        return int(self.ends[line - 1]) + 1 if line else 0

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Lines": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "str | Lines":
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            if step != 1:
                return Lines.of(self[line] for line in range(first, end, step))
            start, ends = self._start(first), self.ends[first:end]
            stop = int(ends[-1]) + 1 if len(ends) else start
            return Lines(self.buffer[start:stop], ends - start)
        line = range(len(self))[index]
        return self.buffer[self._start(line) : int(self.ends[line])].decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in map(int, self.ends):
            yield self.buffer[start:end].decode()
            start = end + 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Lines):
            return self.buffer == other.buffer
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Lines({[*self[:3]]}{'' if len(self) <= 3 else f' … {len(self)}'})"

    def sha256(self) -> str:
        """Digest of all lines, as hexadecimal digits."""
        return hashlib.sha256(self.buffer).hexdigest()


def _stripped(read: Callable[[int], bytes], path: AnyPath) -> Iterator[bytes]:
    """A file's content, some lines at a time, none with spaces around it."""
    before = 0
    for chunk in _chunks(read):
        # Not splitlines(): it would also split at U+2028 and its kin inside a caption.
        lines = decoded(chunk, path, before).split("\n")
        if lines[-1] == "":
            lines.pop()
        before += len(lines)
        yield "".join(f"{line.strip()}\n" for line in lines).encode()


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """A file's content in parts that end where a line does."""
    rest = b""
    while block := read(_CHUNK):
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = b""
        rest += tail
    if rest:
        yield rest
