"""The interface of every search engine: a vector and filters go in, hits come out."""

import datetime
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from vse_jax import InputError, printable


@dataclass(frozen=True)
class Filters:
    """Which pictures may be found; None: any.

    Attributes:
        after, before: 'YYYY-MM-DD', the first and the last day on which a picture may
            have been taken. One without a date passes neither.
        camera: as `Store.cameras` spells it; capitals do not matter.
        folder: relative to the pictures' folder, as `Store.folders` spells it; what
            lies in folders below it counts.

    Raises:
        InputError: a date that is none (names the field).
    """

    after: str | None = None
    before: str | None = None
    camera: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for field in ("after", "before"):
            day = getattr(self, field)
            if day is not None and not _is_day(day):
                raise InputError(f"{field}: {day!r} is no day of the form YYYY-MM-DD")
        folder = printable(self.folder or "").strip("/")
        object.__setattr__(self, "folder", None if folder in ("", ".") else folder)


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


ALL = Filters()  # every picture passes


@dataclass(frozen=True)
class Row:
    """What is known of a picture.

    Attributes:
        path: of its file, the first one by name, as people see it: relative to the
            pictures' folder, with slashes, see `files.printable`.
        file: the same path as the system has it.
        taken, camera: see `pictures.Picture`.
        bytes: size of the file.
        copies: paths of the other files with the same content, as people see them.
    """

    id: int
    path: str
    file: str
    width: int
    height: int
    taken: str | None
    camera: str | None
    bytes: int
    copies: list[str]


class Hit(NamedTuple):
    """A picture that was found."""

    id: int
    path: str  # see `Row`; in the folder that a filter names
    score: float  # inner product of the picture's vector and the query's
    row: Row


@runtime_checkable
class Engine(Protocol):
    """Finds the pictures whose vectors are nearest to a query's."""

    def search(
        self,
        vector: Float32[np.ndarray, " D"],
        *,
        top: int,
        filters: Filters = ALL,
        min_score: float | None = None,
    ) -> list[Hit]:
        """The `top` best pictures that pass `filters`, best first.

        Pictures with a score below `min_score` are left out.

        Raises:
            InputError: a camera or a folder that no picture has.
        """
        ...

    def refresh(self) -> None:
        """Takes in what the index has got since; quick where that is nothing."""
        ...
